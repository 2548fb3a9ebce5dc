"""Heads: a head gives the log-probs of its model, and an unsupported one is refused.

On small models of transformers' own classes, made from configurations, with PEFT's own layers.
"""

from typing import Any

import peft
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mipo.fused.heads import Head, response_states
from mipo.fused.operators import linear_logps
from mipo.loss import token_logps

pytestmark = pytest.mark.usefixtures("one_thread")
# float32 products in another order, on log-probs of about -4.
ATOL = 2e-5
VOCABULARY, ROWS, LENGTH = 61, 3, 11
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4}  # fmt: skip
DECODER = {"vocab_size": VOCABULARY, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
           "decoder_ffn_dim": 48, "max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama with tied embeddings": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "gemma2, softcap": lambda: hf.Gemma2Config(**SIZES, final_logit_softcapping=1.5),
    "recurrent gemma, softcap": lambda: hf.RecurrentGemmaConfig(
        **{**SIZES, "num_key_value_heads": 1, "num_hidden_layers": 3}, lru_width=32, logits_soft_cap=1.5,
        attention_window_size=16,
    ),
    "cohere, scale": lambda: hf.CohereConfig(**SIZES, logit_scale=0.25),
    "granite, division": lambda: hf.GraniteConfig(**SIZES, logits_scaling=8.0),
    "minicpm3, division before": lambda: hf.MiniCPM3Config(**{**SIZES, "num_key_value_heads": 4}, dim_model_base=8),
    "hyperclova x, multiplication": lambda: hf.HyperCLOVAXConfig(**SIZES, logits_scaling=3.0),
    "falcon h1, multiplier": lambda: hf.FalconH1Config(
        **SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, lm_head_multiplier=0.3
    ),
    "gpt2": lambda: hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "phi, bias": lambda: hf.PhiConfig(**{**SIZES, "num_key_value_heads": 4}),
    "opt, a backbone inside a backbone": lambda: hf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=1,
    ),
    "bart, a decoder alone": lambda: hf.BartConfig(**DECODER),
    "trocr, a head of another name": lambda: hf.TrOCRConfig(**DECODER),
    "paligemma, softcap of its text model": lambda: hf.PaliGemmaConfig(
        text_config={**SIZES, "model_type": "gemma2", "final_logit_softcapping": 1.5}, vision_config=EYES,
        projection_dim=32, image_token_index=60,
    ),
    "gemma3 with images": lambda: hf.Gemma3Config(
        text_config=SIZES, vision_config=EYES, mm_tokens_per_image=4, image_token_index=60, boi_token_index=59,
        eoi_token_index=58,
    ),
}  # fmt: skip


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    kinds = hf.AutoModelForImageTextToText if hasattr(config, "vision_config") else hf.AutoModelForCausalLM
    model = kinds.from_config(config)
    # Fresh models say almost the same of every token: wide logits show where a softcap or a scale is missing.
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.normal_(0, 0.5)
        if head.bias is not None:
            head.bias.normal_()
    return model.eval()


def llama(**fields: Any) -> Any:
    return model_of(hf.LlamaConfig(**SIZES, **fields))


def text() -> Tensor:
    return torch.randint(3, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def response_mask() -> Tensor:
    """The mask of responses of several lengths, one of them empty, with padding on the right."""
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    mask[0, 4:], mask[1, 1:3] = True, True
    return mask


def ours(model: Any) -> Tensor:
    hidden, targets = response_states(model, text(), response_mask())
    logps = token_logps(hidden, targets=targets, **Head.of(model)(hidden))
    assert isinstance(logps, Tensor)
    return logps


def theirs(model: Any) -> Tensor:
    logps = model(input_ids=text()).logits[:, :-1].float().log_softmax(-1)
    return logps.gather(-1, text()[:, 1:, None])[..., 0][response_mask()[:, 1:]]


def assert_same_logps(model: Any) -> None:
    torch.testing.assert_close(ours(model), theirs(model), atol=ATOL, rtol=0)


def assert_same_gradients(model: Any) -> None:
    gradients = []
    for logps in (ours, theirs):
        model.zero_grad()
        logps(model).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4, msg=name)


def with_lora(model: Any, **fields: Any) -> Any:
    """PEFT's model with LoRA on the head, B no longer zero."""
    targets = fields.pop("target_modules", ["q_proj", "lm_head"])
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **fields))
    return adapted.eval()


# Reading a model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_makes_the_log_probs_of_its_model(name: str) -> None:
    model = model_of(CONFIGS[name]())
    assert_same_logps(model)
    head = Head.of(model)
    head.verify(model)
    assert (head.bias is not None) == ("bias" in name)
    assert (head.softcap is not None) == ("softcap" in name)
    if head.softcap is not None or head.scale != 1:
        with pytest.raises(ValueError, match="changes logits in a way unknown"):
            Head(head.weight, head.bias, None, 1.0).verify(model)


def test_verify_sees_what_no_layer_shows() -> None:
    """Gemma 3 with images has no softcap, even where its configuration has one."""
    config = CONFIGS["gemma3 with images"]()
    config.text_config.final_logit_softcapping = 1.5
    model = model_of(config)
    with pytest.raises(ValueError, match="Gemma3ForConditionalGeneration"):
        Head.of(model).verify(model)


class Detour(hf.LlamaForCausalLM):
    """Calls its backbone's layers, and the backbone never."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        logits = self.lm_head(self.model.norm(self.model.embed_tokens(input_ids)))
        return hf.modeling_outputs.CausalLMOutput(logits=logits)


def test_verify_refuses_a_model_that_bypasses_its_backbone() -> None:
    model = Detour(hf.LlamaConfig(**SIZES))
    with pytest.raises(NotImplementedError, match="Detour, whose forward runs without its LlamaModel"):
        Head.of(model).verify(model)


def test_verify_sees_another_stream_of_states() -> None:
    """ProphetNet's head reads the states that predict, and not those that its decoder returns first."""
    config = hf.ProphetNetConfig(vocab_size=VOCABULARY, hidden_size=32, decoder_ffn_dim=48, num_decoder_layers=2,
                                 num_decoder_attention_heads=4, max_position_embeddings=32)  # fmt: skip
    model = model_of(config)
    with pytest.raises(ValueError, match="ProphetNetForCausalLM"):
        Head.of(model).verify(model)


def test_the_head_s_tensors_are_the_model_s() -> None:
    model = llama()
    head = Head.of(model)
    assert head.weight is model.lm_head.weight
    assert (head.bias, head.softcap, head.scale, head.adapters) == (None, None, 1.0, ())
    assert_same_gradients(model)


def test_verify_leaves_the_model_as_it_was() -> None:
    model = llama().train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    Head.of(model).verify(model, text())
    assert [module.training for module in model.modules()] == modes
    assert not model.model._forward_hooks


def test_wrappers_are_looked_through() -> None:
    model = llama()
    assert Head.of(torch.compile(model)).weight is model.lm_head.weight
    assert Head.of(with_lora(model, target_modules=["q_proj"])).weight is model.lm_head.weight


def test_sharded_weights_are_gathered() -> None:
    """FSDP2 on one process: the parameters are DTensors, and the head's own layer has a class of FSDP2's."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain = with_lora(llama())
    expected = ours(plain)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        inner = plain.get_base_model()
        fully_shard(inner.lm_head, mesh=mesh)
        head = Head.of(inner)
        assert isinstance(inner.lm_head.base_layer.weight, DTensor)
        assert not any(isinstance(t, DTensor) for t in (head.weight, head.adapters[0].down, head.adapters[0].up))
        torch.testing.assert_close(ours(inner), expected, atol=ATOL, rtol=0)
        ours(inner).sum().backward()
        assert isinstance(inner.lm_head.lora_B["default"].weight.grad, DTensor)
    finally:
        dist.destroy_process_group()


def test_a_trained_weight_sharded_by_itself_is_refused() -> None:
    """Over two processes nobody would sum its gradient; the refusal needs no second process."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model = llama()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        whole = model.lm_head.weight.detach()
        shard = distribute_tensor(whole, init_device_mesh("cpu", (2,)))
        model.lm_head.weight = torch.nn.Parameter(shard)
        with pytest.raises(
            NotImplementedError, match="sharded by FSDP2 over 2 processes; shard the LM head with the root"
        ):
            Head.of(model)
        with torch.no_grad():
            assert Head.of(model).weight.shape == whole.shape
    finally:
        dist.destroy_process_group()


def test_the_arguments_are_those_of_the_fused_head() -> None:
    for model in (model_of(CONFIGS["phi, bias"]()), model_of(CONFIGS["gemma2, softcap"]()), with_lora(llama())):
        hidden, targets = response_states(model, text(), response_mask())
        logps = linear_logps(hidden, targets=targets, **Head.of(model)(hidden))
        torch.testing.assert_close(logps, theirs(model), atol=ATOL, rtol=0)


# Response tokens


def test_packed_states_are_those_that_predict_the_response() -> None:
    model = llama()
    hidden, targets = response_states(model, text(), response_mask())
    every = model.model(input_ids=text()).last_hidden_state
    assert targets.tolist() == [*text()[0, 4:].tolist(), *text()[1, 1:3].tolist()]
    torch.testing.assert_close(hidden, torch.cat([every[0, 3:-1], every[1, :2]]))


def test_padding_on_the_left_changes_nothing() -> None:
    model = llama()
    ids, mask = text(), response_mask()
    shifted = torch.cat([torch.zeros(ROWS, 2, dtype=torch.int64), ids], 1)
    later = torch.cat([torch.zeros(ROWS, 2, dtype=torch.bool), mask], 1)
    seen = torch.ones_like(shifted)
    seen[:, :2] = 0
    for one, two in zip(response_states(model, ids, mask), response_states(model, shifted, later, seen), strict=True):
        torch.testing.assert_close(one, two, atol=ATOL, rtol=0)


def test_a_mask_that_can_t_be_is_refused() -> None:
    first = response_mask()
    first[2, 0] = True
    with pytest.raises(ValueError, match="first column"):
        response_states(llama(), text(), first)
    with pytest.raises(ValueError, match="shape of input_ids"):
        response_states(llama(), text(), response_mask()[:, 1:])


# PEFT


@pytest.mark.parametrize(
    "config", ["llama", "llama with tied embeddings", "gemma2, softcap", "cohere, scale", "minicpm3, division before"]
)
@pytest.mark.parametrize("fields", [{}, {"lora_alpha": 3, "use_rslora": True}], ids=["lora", "rslora"])
def test_lora_on_the_head(config: str, fields: dict[str, Any]) -> None:
    model = with_lora(model_of(CONFIGS[config]()), **fields, target_modules=["o_proj", "lm_head"])
    head = Head.of(model)
    assert not head.weight.requires_grad
    assert len(head.adapters) == 1
    head.verify(model)
    assert_same_logps(model)
    assert_same_gradients(model)


def test_lora_on_a_head_with_bias() -> None:
    assert_same_gradients(with_lora(model_of(CONFIGS["phi, bias"]())))


def test_dropout_falls_on_what_the_adapter_reads() -> None:
    model = with_lora(llama(), lora_dropout=0.5, target_modules=["lm_head"]).train()
    torch.manual_seed(3)
    expected = theirs(model)
    # The same draw of [N, L, D] numbers, then the response tokens.
    torch.manual_seed(3)
    states = model.get_base_model().model(input_ids=text()).last_hidden_state
    arguments = Head.of(model)(states)
    logps = token_logps(states[:, :-1], targets=text()[:, 1:],
                        **{**arguments, "lora": (arguments["lora"][0][:, :-1], arguments["lora"][1])})  # fmt: skip
    torch.testing.assert_close(logps[response_mask()[:, 1:]], expected, atol=ATOL, rtol=0)
    assert (arguments["lora"][0] - Head.of(model.eval())(states)["lora"][0]).abs().max() > 0.1


def test_several_adapters_stand_side_by_side() -> None:
    model = with_lora(llama())
    model.add_adapter("second", LoraConfig(r=3, target_modules=["lm_head"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    hidden, _ = response_states(model, text(), response_mask())
    assert [tuple(part.shape) for part in Head.of(model)(hidden)["lora"]] == [(len(hidden), 7), (VOCABULARY, 7)]
    assert_same_logps(model)
    assert_same_gradients(model)
    model.set_adapter("second")
    assert len(Head.of(model).adapters) == 1
    assert_same_logps(model)


def test_disabled_and_merged_adapters_are_none() -> None:
    model = with_lora(llama())
    with model.disable_adapter():
        assert Head.of(model).adapters == ()
        assert_same_logps(model)
    on = ours(model)
    model.merge_adapter()
    assert Head.of(model).adapters == ()
    assert_same_logps(model)
    torch.testing.assert_close(ours(model), on, atol=ATOL, rtol=0)
    with model.disable_adapter(), pytest.raises(ValueError, match="unmerge_adapter"):
        Head.of(model)


def test_adapters_in_the_model_without_peft_s_wrapper() -> None:
    model = llama()
    peft.inject_adapter_in_model(LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False), model)
    assert_same_logps(model)
    assert len(Head.of(model).adapters) == 1


def test_a_trained_copy_of_the_head() -> None:
    model = with_lora(llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    copy = model.get_base_model().lm_head.modules_to_save["default"]
    with torch.no_grad():
        copy.weight.add_(torch.randn_like(copy.weight))
    assert Head.of(model).weight is copy.weight
    assert_same_logps(model)
    assert_same_gradients(model)
    with model.disable_adapter():
        assert Head.of(model).weight is model.get_base_model().lm_head.original_module.weight
        assert_same_logps(model)
    model.add_adapter("plain", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("plain")
    assert_same_logps(model)


def test_adapters_take_the_dtype_of_the_weight() -> None:
    """PEFT keeps A and B in float32 beside a bfloat16 model."""
    model = with_lora(llama().bfloat16())
    head = Head.of(model)
    assert {head.adapters[0].down.dtype, head.adapters[0].up.dtype} == {torch.float32}
    hidden, _ = response_states(model, text(), response_mask())
    assert {part.dtype for part in head(hidden)["lora"]} == {torch.bfloat16}
    head.verify(model)


# What is refused


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # PEFT, too, says what it costs
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "Dora variant"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3]}}, "TrainableTokensWrapper"),
    ],
)
def test_other_adapters_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    model = with_lora(llama(), **fields)
    with pytest.raises(NotImplementedError, match=message):
        Head.of(model)


def test_trainable_tokens_of_a_tied_embedding_are_refused() -> None:
    model = with_lora(llama(tie_word_embeddings=True), target_modules=["q_proj"], trainable_token_indices=[3])
    with pytest.raises(NotImplementedError, match="TrainableTokens"):
        Head.of(model)


def test_other_tuners_are_refused_by_name() -> None:
    config = peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[])
    with pytest.raises(NotImplementedError, match=r"peft\.tuners\.ia3"):
        Head.of(get_peft_model(llama(), config))
    mixed = get_peft_model(llama(), LoraConfig(target_modules=["lm_head"]), mixed=True)
    with pytest.raises(TypeError, match="PeftMixedModel"):
        Head.of(mixed)


def test_learned_prompts_have_no_states_of_their_own() -> None:
    model = get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert Head.of(model).weight is model.get_base_model().lm_head.weight
    with pytest.raises(NotImplementedError, match="learned prompts"):
        response_states(model, text(), response_mask())


class Scaled(nn.Linear):
    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


def test_a_head_that_does_more_is_refused() -> None:
    model = llama()
    model.lm_head = Scaled(32, VOCABULARY, bias=False)
    with pytest.raises(NotImplementedError, match="Scaled"):
        Head.of(model)
    model.lm_head = nn.Sequential(nn.Linear(32, VOCABULARY))
    with pytest.raises(NotImplementedError, match="Sequential"):
        Head.of(model)
    model = llama()
    model.lm_head.forward = lambda states: 2 * states
    with pytest.raises(NotImplementedError, match="patched Linear"):
        Head.of(model)


def test_layers_between_the_backbone_and_the_head_are_refused() -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    for config in (
        hf.RobertaConfig(**sizes, intermediate_size=48, is_decoder=True, pad_token_id=1),
        hf.ModernBertDecoderConfig(**sizes, intermediate_size=48, pad_token_id=0),
    ):
        model = hf.AutoModelForCausalLM.from_config(config)
        with pytest.raises(NotImplementedError, match=r"lm_head.* backbone and a linear head"):
            Head.of(model)
    bart = hf.BartConfig(vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1,
                         encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    with pytest.raises(NotImplementedError, match="final_logits_bias"):
        Head.of(hf.BartForConditionalGeneration(bart))
    with pytest.raises(NotImplementedError, match="LlamaModel"):
        Head.of(llama().model)


def test_weights_that_are_not_here_or_not_numbers_are_refused() -> None:
    model = llama()
    with torch.device("meta"):
        model.lm_head = nn.Linear(32, VOCABULARY, bias=False)
    with pytest.raises(NotImplementedError, match="meta"):
        Head.of(model)
    model.lm_head = nn.Linear(32, VOCABULARY, bias=False)
    model.lm_head.weight = nn.Parameter(torch.zeros(0))
    with pytest.raises(NotImplementedError, match="ZeRO-3"):
        Head.of(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(NotImplementedError, match="quantized"):
        Head.of(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY, 32).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(NotImplementedError, match="quantized"):
        Head.of(model)


def test_only_models_of_transformers_are_read() -> None:
    with pytest.raises(TypeError, match="got Linear"):
        Head.of(nn.Linear(3, 4))
