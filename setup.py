"""What pyproject.toml cannot say: the presets in conf/ go into the wheel, as yolact_ops/settings/conf."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """Copies the packages, and the presets; an editable install finds them in its checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "yolact_ops", "settings", "conf")
            self.mkpath(str(folder))
            for preset in sorted(Path("conf").glob("*.yaml")):
                self.copy_file(str(preset), str(folder / preset.name))


setup(cmdclass={"build_py": BuildWithPresets})
