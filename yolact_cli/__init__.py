"""The command yolact: one module per subcommand, imported when it is called."""
