"""The demo: an invented world of users (`world`), a tiny model that talks about it (`model/`), and a plain recipe."""

import shutil
from pathlib import Path

HERE = Path(__file__).parent


def run_demo(*, seed: int = 0, output: str | Path = "runs/demo", control: str | None = None) -> Path:
    """Runs the demo's recipe in the folder `output`, with its inputs in `output/inputs`; returns the run folder.

    Without a `control`, a second run on shuffled pairs follows in `output/control-shuffled`, and the report shows its
    figures beside MIPO's.
    """
    from mipo.demo import world
    from mipo.io import outputs
    from mipo.run import pipeline

    output = Path(output)
    inputs = output / "inputs"
    with outputs.claim(output, "run"), outputs.claim(inputs, "demo inputs"):
        world.write(inputs, seed=seed)
        shutil.copytree(HERE / "model", inputs / "model", dirs_exist_ok=True)
        shutil.copyfile(HERE / "recipe.yaml", inputs / "recipe.yaml")
    recipe = inputs / "recipe.yaml"
    if control:
        return pipeline.run_recipe(recipe, output=output, seed=seed, control=control)
    pipeline.run_recipe(recipe, output=output, seed=seed, until="evaluate")
    beside = pipeline.run_recipe(
        recipe, output=output / "control-shuffled", seed=seed, control="shuffled", reuse=output
    )
    return pipeline.run_recipe(recipe, output=output, seed=seed, beside={"shuffled": beside})
