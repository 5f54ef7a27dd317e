"""Building blocks of reports and tables: HTML pages, embedded images, numbers as text."""
