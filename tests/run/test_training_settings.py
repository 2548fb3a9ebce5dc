"""Training settings: what TRL and PEFT would refuse after hours is refused before any prompt is read."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from mipo import cli, demo
from mipo.errors import InputError, NotThereError
from mipo.run import pipeline, training_settings
from mipo.run.preview import dry_run
from mipo.run.recipe import load

MODEL = demo.HERE / "model"


def write(folder: Path, text: str) -> Path:
    """A recipe on the demo's model whose prompts do not exist: reading them fails with another error."""
    path = folder / "recipe.yaml"
    path.write_text(f"model: {MODEL}\nprompts: {{source: absent.jsonl}}\n{text}")
    return path


REFUSED = [
    ("contrast: {negatives: 2}\ntrainer: {loss_type: ipo}", "trainer.loss_type: expected ['sigmoid'], since several"),
    ("contrast: {negatives: 2}\ncontrol: sft", "trainer.loss_type: expected ['sigmoid'], since several"),
    (
        "launch: {processes: 2, config: zero3}\ntrainer: {precompute_ref_log_probs: true}",
        "trainer.precompute_ref_log_probs: expected null or false with ZeRO-3",
    ),
    ("trainer: {max_length: 1}", "trainer.max_length: expected at least 2"),
    ("trainer: {loss_type: [sigmod]}", "trainer.loss_type: expected names among sigmoid"),
    ("trainer: {loss_type: [sigmoid, sft], loss_weights: [1]}", "trainer: `loss_weights` must have the same length"),
    ("trainer: {fused_loss: true, ld_alpha: 0.5}", "trainer.fused_loss=True does not support ld_alpha=0.5"),
    ("trainer: {eval_strategy: steps, eval_steps: 1}", "trainer.eval_strategy: expected no, got 'steps'"),
    ("trainer: {report_to: clearml}", "trainer.report_to: ClearMLCallback requires"),
    ("trainer: {report_to: paper}", "trainer.report_to: paper is not supported, only"),
    ("trainer: {sync_ref_model: true, precompute_ref_log_probs: true}", "trainer.sync_ref_model: expected false"),
    ("lora: {r: 2}\ntrainer: {sync_ref_model: true}", "trainer.sync_ref_model: expected false with LoRA"),
    ("trainer: {loss_type: exo_pair}", "trainer.label_smoothing: expected more than 0 with loss_type exo_pair"),
    ("trainer: {loss_type: aot, use_weighting: true}", "trainer.use_weighting: expected false with loss_type aot"),
    ("trainer: {loss_type: nca_pair, f_divergence_type: forward_kl}", "trainer.f_divergence_type: expected reverse_kl"),
    ("trainer: {f_divergence_type: kl}", "trainer.f_divergence_type: expected one of reverse_kl"),
    ("trainer: {eval_on_start: true}", "trainer.eval_on_start: expected false, got true"),
    ("trainer: {save_strategy: best}", "trainer.save_strategy: expected steps, epoch or 'no', got 'best'"),
    ("trainer: {resume_from_checkpoint: x}", "trainer.resume_from_checkpoint: expected none, got 'x'"),
    ("trainer: {train_sampling_strategy: group_by_length}", "trainer.train_sampling_strategy: expected random or"),
    ("trainer: {fsdp: full_shard}", "trainer.fsdp: expected none in a single process"),
    ("trainer: {fsdp: true, fsdp_config: absent.json}", "trainer: absent.json: No such file or directory"),
    ("trainer: {deepspeed: absent.json}", "trainer: "),
    ("trainer: {push_to_hub: true}", "trainer.push_to_hub: expected a login"),
    ("trainer: {log_level: loud}", "trainer.log_level: expected one of detail, debug, info"),
    ("trainer: {dataloader_num_workers: -1}", "trainer.dataloader_num_workers: expected a whole number of at least 0"),
    ("trainer: {ref_model_sync_steps: 0}", "trainer.ref_model_sync_steps: expected a whole number of at least 1"),
    ("trainer: {truncation_mode: keep_middle}", "trainer.truncation_mode: expected keep_end or keep_start"),
    ("trainer: {parallelism_config: {dp_size: 2}}", "trainer.parallelism_config: expected null"),
    ("trainer: {torch_compile: true, torch_compile_backend: foo}", "trainer.torch_compile_backend: 'FOO' is not a"),
    ("trainer: {gradient_checkpointing_kwargs: {foo: 1}}", "trainer.gradient_checkpointing_kwargs: expected"),
    ("trainer: {use_liger_kernel: true}", "trainer.use_liger_kernel: needs liger-kernel"),
    ("trainer: {optim: adamw_bnb_8bit}", "trainer.optim: You need to install `bitsandbytes`"),
    ("trainer: {optim: galore_adamw}", "trainer.optim: You need to install `galore_torch`"),
    ("trainer: {optim: grokadamw}", "trainer.optim: Please install grokadamw"),
    ("trainer: {optim: sgd, optim_args: momentum}", "trainer.optim_args: expected name=value"),
    ("trainer: {adam_beta1: 2}", "trainer.optim: Invalid beta parameter"),
    ("trainer: {lr_scheduler_kwargs: {foo: 1}}", "trainer.lr_scheduler_kwargs: get_cosine_with_min_lr_schedule"),
    ("trainer: {lr_scheduler_type: warmup_stable_decay}", "trainer.lr_scheduler_kwargs: get_wsd_schedule() missing"),
    ("trainer: {router_aux_loss_coef: 0.1}", "trainer.router_aux_loss_coef: expected none"),
    ("trainer: {pad_token: zzz}", "trainer.pad_token: expected a token of the model's, got 'zzz'"),
    ("trainer: {model_init_kwargs: {attn_implementation: flash_attention_2}}", "trainer.model_init_kwargs.attn_impl"),
    ("trainer: {model_init_kwargs: {attn_implementaton: sdpa}}", "trainer.model_init_kwargs.attn_implementaton: from_"),
    ("trainer: {model_init_kwargs: {dtype: bfloat61}}", "trainer.model_init_kwargs.dtype: expected auto, bfloat16"),
    ("trainer: {model_init_kwargs: {quantization_config: {load_in_4bit: true}}}", "trainer.model_init_kwargs.quantiz"),
    ("trainer: {bf16: true, fp16: true}", "trainer: At most one of fp16 and bf16"),
    ("trainer: {accelerator_config: {split_batch: true}}", "trainer: AcceleratorConfig.__init__() got an unexpected"),
    ("lora: {target_modules: [q_porj]}", "lora.target_modules: expected names in the model, got 'q_porj'"),
    ("lora: {target_modules: [q_proj, k_porj]}", "lora.target_modules: expected names in the model, got 'k_porj'"),
    ("lora: {target_modules: '[('}", "lora.target_modules: expected a regular expression"),
    ("lora: {modules_to_save: [lm_haed]}", "lora.modules_to_save: expected names in the model, got 'lm_haed'"),
    ("lora: {target_parameters: [foo]}", "lora.target_parameters: expected names in the model, got 'foo'"),
    ("lora: {trainable_token_indices: [999999]}", "lora.trainable_token_indices: expected 0 to 129, got 999999"),
    ("lora: {rank_pattern: {q_proj: 0}}", "lora: `r` should be a positive integer"),
    ("lora: {inference_mode: true}", "lora.inference_mode: expected false"),
    ("lora: {task_type: SEQ_CLS}", "lora.task_type: expected CAUSAL_LM"),
    ("lora: {init_lora_weights: gausian}", "lora.init_lora_weights: Unknown initialization"),
    ("lora: {init_lora_weights: corda}", "lora.init_lora_weights: corda reads data"),
    ("lora: {target_modules: [lm_head]}", "lora.target_modules: expected no LM head"),
    ("lora: {layers_pattern: h, target_modules: all-linear}", "lora: `layers_pattern` cannot be used when"),
]


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_kwargs`",
    "ignore:`pad_token` is deprecated",
    "ignore:`init_lora_weights` is 'corda'",
)
@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_could_not_train_is_refused_before_a_prompt_is_read(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    for refused in (lambda: pipeline.run_recipe(path, output=tmp_path / "out"), lambda: dry_run(path)):
        with pytest.raises(InputError) as error:
            refused()
        assert str(error.value).startswith(f"{path}: {message}")
    assert not (tmp_path / "out").exists()


def test_a_refused_deepspeed_file_does_not_spoil_the_next_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError) as kept:  # its traceback keeps the half-made config alive
        dry_run(write(tmp_path, "trainer: {deepspeed: absent.json}"))
    with pytest.raises(NotThereError, match=r"absent\.jsonl: no such file"):  # past the settings, at the prompts
        dry_run(write(tmp_path, "trainer: {max_steps: 1}"))
    assert kept.value.__cause__


def test_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "lora: {target_modules: [q_porj]}")
    assert cli.main(["run", str(path), "--dry-run"]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith(f"mipo run: error: {path}: lora.target_modules: ")
    assert printed.endswith(
        "The model's linear layers are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


def test_a_model_that_is_not_there_is_no_fault_of_the_adapter(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: ./no/model\nprompts: {source: absent.jsonl}\nlora: {r: 4}\n")
    with pytest.raises(NotThereError, match=r"^\./no/model: no such folder"):
        dry_run(path)


@pytest.mark.parametrize(
    "lora",
    [
        "{}",
        "{r: 4, target_modules: all-linear}",
        "{init_lora_weights: pissa}",
        "{use_dora: true}",
        "{modules_to_save: [lm_head]}",
    ],
)
def test_an_adapter_that_fits_passes(tmp_path: Path, lora: str) -> None:
    assert training_settings.load_checked(write(tmp_path, f"lora: {lora}"), tmp_path / "out").lora is not None


def test_both_configs_are_what_the_recipe_says(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "seed: 7\ncontrol: sft\ntrainer: {beta: 0.3}\nlora: {r: 4}\n"))
    args, lora = training_settings.build(recipe, tmp_path)
    assert (args.seed, args.beta, args.loss_type, args.learning_rate) == (7, 0.3, ["sft"], 5e-7)
    assert args.output_dir == str(tmp_path / "checkpoints")
    assert lora is not None
    assert (lora.r, lora.task_type) == (4, "CAUSAL_LM")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="on an accelerator bf16 is the default")
def test_bf16_on_a_cpu_just_works(tmp_path: Path) -> None:
    from mipo.demo import world

    world.write(tmp_path, train=64, test=24, seed=1)
    settings = yaml.safe_load((demo.HERE / "recipe.yaml").read_text()) | {"model": str(MODEL)}
    settings["evaluation"] |= {"negatives": 3}
    settings["trainer"] |= {"bf16": True, "max_steps": 1, "save_strategy": "no"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    pipeline.run_recipe(tmp_path / "recipe.yaml", output=tmp_path / "out", until="train")
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log[-1]["step"] == 1
    with pytest.raises(InputError, match="fp16: expected false on a CPU"):
        dry_run(write(tmp_path, "trainer: {fp16: true}"))
