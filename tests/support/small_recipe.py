"""A small recipe on the demo's world."""

from pathlib import Path

import yaml

from mipo import demo
from mipo.demo import world


def write_recipe(folder: Path, **changes) -> Path:
    """A small recipe on the demo's world: 64 training rows, 24 held-out rows, four steps."""
    folder.mkdir(parents=True, exist_ok=True)
    world.write(folder, train=64, test=24, seed=1)
    settings = yaml.safe_load((demo.HERE / "recipe.yaml").read_text())
    settings["model"] = str(demo.HERE / "model")
    settings["evaluation"] |= {"negatives": 3, "rows": 8}
    settings["trainer"] |= {"save_steps": 2, "logging_steps": 1}
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
