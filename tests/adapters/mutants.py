"""Small adapters of all families and formats, what is done to them, and a reader of dW without any code of Draft."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int32: "I32",
    torch.int8: "I8",
}
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV, TEXT = "down_blocks.0.resnets.0.conv1", "text_model.encoder.layers.0.mlp.fc1"


class Adapter:
    """An adapter's file before it is written: what can be changed in it.

    Args:
        tensors: By name.
        format: In which it is written again, so that the names stay comparable.
        metadata: The header's entries.
        config: Of a peft folder; None: it is a file alone.
        rank: With which it has to be read, if it has LoHa or LoKr modules.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        format: str,
        metadata: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        rank: int | None = None,
    ) -> None:
        self.tensors, self.format, self.metadata = tensors, format, metadata or {}
        self.config, self.rank = config, rank


def adapters() -> dict[str, Adapter]:
    """One of every kind, freshly made."""
    torch.manual_seed(0)

    def lora(base: str, rows: int, columns: int, names: str = "kohya", dtype: Any = torch.float32) -> dict[str, Tensor]:
        down, up = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}[names]
        a, b = torch.randn(2, columns).to(dtype), torch.randn(rows, 2).to(dtype)
        return {f"{base}.{down}.weight": a, f"{base}.{up}.weight": b}

    def flat(path: str, prefix: str = "lora_unet_") -> str:
        return prefix + path.replace(".", "_")

    def conv(base: str, names: tuple[str, str] = ("lora_down", "lora_up")) -> dict[str, Tensor]:
        return {
            f"{base}.{names[0]}.weight": torch.randn(2, 8, 3, 3),
            f"{base}.{names[1]}.weight": torch.randn(8, 2, 1, 1),
        }

    alpha = {f"{flat(Q)}.alpha": torch.tensor(1.0), f"{flat(CONV)}.alpha": torch.tensor(4.0)}
    text = lora(flat(TEXT, "lora_te_"), 24, 6)
    tucker = {f"{flat(CONV)}.lora_down.weight": torch.randn(2, 8, 1, 1)}
    tucker |= {f"{flat(CONV)}.lora_mid.weight": torch.randn(2, 2, 3, 3)}
    tucker |= {f"{flat(CONV)}.lora_up.weight": torch.randn(8, 2, 1, 1)}
    loha = {f"{flat(Q)}.hada_w{n}_{s}": torch.randn(*((8, 2) if s == "a" else (2, 8))) for n in "12" for s in "ab"}
    lokr = {f"{flat(Q)}.lokr_w1": torch.randn(2, 2), f"{flat(Q)}.lokr_w2_a": torch.randn(4, 2)}
    lokr |= {f"{flat(Q)}.lokr_w2_b": torch.randn(2, 4)}
    xl = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "alpha_pattern": {"attn2.to_k": 5}, "use_rslora": False}
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    flux, sd3 = {"modelspec.architecture": "flux-1-dev/lora"}, {"modelspec.architecture": "stable-diffusion-3/lora"}
    block = "transformer.transformer_blocks.0"
    old = {f"unet.{Q.replace('.to_q', '.processor.to_q_lora')}.{s}.weight": t for s, t in
           (("down", torch.randn(2, 8)), ("up", torch.randn(8, 2)))}  # fmt: skip
    two = {**lora(f"unet.{Q}", 8, 8, "peft"), **lora(f"unet.{K}", 8, 12, "peft")}
    return {
        "sd, kohya": Adapter(
            {**lora(flat(Q), 8, 8), **lora(flat(K), 8, 12), **conv(flat(CONV)), **text, **alpha}, "kohya"
        ),
        "sd, half": Adapter({**lora(flat(Q), 8, 8, dtype=torch.float16), **alpha_of(flat(Q), 1.5)}, "kohya"),
        "sd, bfloat16": Adapter(lora(flat(Q), 8, 8, dtype=torch.bfloat16), "kohya"),
        "sd, float8": Adapter(lora(flat(Q), 8, 8, dtype=torch.float8_e4m3fn), "kohya"),
        "sd, Tucker": Adapter({**tucker, f"{flat(CONV)}.alpha": torch.tensor(1.0)}, "kohya"),
        "sd, LoHa": Adapter({**loha, **alpha_of(flat(Q), 1.0)}, "kohya", rank=8),
        "sd, LoKr": Adapter({**lokr, **alpha_of(flat(Q), 1.0)}, "kohya", rank=8),
        "sd, diffusers": Adapter({**two, **lora(f"text_encoder.{TEXT}", 24, 6, "peft")}, "diffusers", header),
        "sd, older diffusers": Adapter(old, "diffusers"),
        "sd, peft": Adapter(
            {name.replace("unet.", "base_model.model."): tensor for name, tensor in two.items()},
            "peft",
            config=config,
        ),
        "sdxl, kohya": Adapter({**lora(flat(Q), 8, 8), **lora(flat(TEXT, "lora_te2_"), 24, 6)}, "kohya", xl),
        "flux, diffusers": Adapter(
            {**lora(f"{block}.attn.to_q", 8, 8, "peft"), **lora(f"{block}.ff.net.0.proj", 32, 8, "peft")},
            "diffusers",
            flux,
        ),
        "flux, kohya": Adapter(lora("lora_unet_single_blocks_0_linear1", 56, 8), "kohya", flux),
        "sd3, kohya": Adapter(lora("lora_unet_joint_blocks_0_x_block_attn_qkv", 24, 8), "kohya", sd3),
        "sd2, ComfyUI": Adapter(lora(f"text_encoders.clip_h.transformer.{TEXT}", 24, 6, "peft"), "diffusers"),
    }


def alpha_of(base: str, value: float) -> dict[str, Tensor]:
    """The tensor that holds a module's alpha."""
    return {f"{base}.alpha": torch.tensor(value)}


def packed(adapter: Adapter, draw: random.Random, *, crafted: bool) -> bytes:
    """The bytes of its safetensors file, with a header that is made up if that is asked for."""
    header: dict[str, Any] = {"__metadata__": adapter.metadata} if adapter.metadata else {}
    data = b""
    for name, tensor in adapter.tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        shape, offsets = list(tensor.shape), [len(data), len(data) + len(raw)]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header)
    if crafted:
        name = draw.choice([name for name in header if name != "__metadata__"] or ["x"])
        entry: dict[str, Any] = header.setdefault(name, {})
        what = draw.randrange(9)
        if what == 0:
            entry["data_offsets"] = [draw.randrange(-3, 99), draw.choice([0, 64, 10**12, 2**70])]
        elif what == 1:
            entry["dtype"] = draw.choice(["F32", "F16", "BF16", "I32", "F8_E4M3", "C64", "F4", "F99", 5, None])
        elif what == 2:
            entry["shape"] = draw.choice([[2**40, 2**40], [-2, 4], [8], [], [0, 8], [16, 1], "8", [2.0, 8], [True, 8]])
        elif what == 3:
            header["__metadata__"] = draw.choice([[], {"a": 1}, {"a": None}, "x", {"b": "\ud800"}])
        elif what == 4:
            header[name] = draw.choice([[], None, 5, {}, {**entry, "more": 1}])
        text = json.dumps(header)
        if what == 5:
            text = draw.choice(["[" * 50_000, "{", "", "null", "[]", '{"a":NaN}', '{"a":' + "9" * 9_000 + "}"])
        elif what == 6:
            text = text.replace('"F32"', draw.choice(['"F16"', '"F64"', '"I32"', '"BF16"']), 1)
        elif what == 7:
            text = text.replace("{", '{"__metadata__": {"format": "pt"}, "__metadata__": {"x": "y"}, ', 1)
        elif what == 8:
            text += " " * draw.randrange(64) + draw.choice(["", "}", "\0", "é"])
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data


def mutate(adapter: Adapter, draw: random.Random) -> str:
    """Do something to the tensors, the metadata or the configuration; says what."""
    kind = draw.choice(list(CHANGES))
    CHANGES[kind](adapter, draw)
    return kind


def _some(adapter: Adapter, draw: random.Random) -> str:
    return draw.choice(list(adapter.tensors) or ["x"])


def _drop(adapter: Adapter, draw: random.Random) -> None:
    adapter.tensors.pop(_some(adapter, draw), None)


def _swap(adapter: Adapter, draw: random.Random) -> None:
    one, two = _some(adapter, draw), _some(adapter, draw)
    adapter.tensors[one], adapter.tensors[two] = adapter.tensors[two], adapter.tensors[one]


def _rename(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    old, new = draw.choice(
        [
            ("lora_down", "lora_up"),
            ("lora_up", "lora_mid"),
            ("lora_A", "lora_B"),
            ("lora_A", "lora_down"),
            ("lora_unet_", "lora_te_"),
            ("unet.", ""),
            ("unet.", "text_encoder."),
            ("transformer.", "unet."),
            ("base_model.model.", "unet."),
            ("_0_", "_1_"),
            (".0.", ".99999."),
            ("to_q", "to_k"),
            ("attn1", "attn9"),
            ("hada_w1_a", "hada_w2_a"),
            ("lokr_w1", "lokr_w1_a"),
            (".weight", ""),
            ("alpha", "dora_scale"),
            ("lora_", "lorа_"),
        ]
    )
    adapter.tensors = {(key.replace(old, new) if key == name else key): t for key, t in adapter.tensors.items()}


def _shape(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    tensor = adapter.tensors[name]
    what = draw.randrange(6)
    if what == 0:
        tensor = tensor.T.contiguous() if tensor.ndim == 2 else tensor.reshape(-1)
    elif what == 1:
        tensor = tensor[None]
    elif what == 2:
        tensor = tensor.reshape(-1)[: draw.choice([0, 1, 7])]
    elif what == 3 and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    elif what == 4 and tensor.ndim:
        tensor = tensor[: max(1, len(tensor) // 2)]
    elif tensor.ndim:
        tensor = torch.cat([tensor.float(), tensor.float()]).to(tensor.dtype)
    adapter.tensors[name] = tensor


def _dtype(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    adapter.tensors[name] = adapter.tensors[name].to(draw.choice(list(DTYPES)))


def _number(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    tensor = adapter.tensors[name].clone()
    if tensor.numel():
        numbers = tensor.float().reshape(-1)
        numbers[draw.randrange(tensor.numel())] = draw.choice([math.nan, math.inf, 0.0, 1e38, -1e30, 1e-38, 7.0])
        adapter.tensors[name] = numbers.reshape(tensor.shape).to(tensor.dtype)


def _zero(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    adapter.tensors[name] = torch.zeros_like(adapter.tensors[name])


def _alpha(adapter: Adapter, draw: random.Random) -> None:
    base = re.split(r"\.(?=lora_|hada_|lokr_|alpha)", _some(adapter, draw))[0]
    value = draw.choice([0.0, -1.0, 1e-30, 1e30, math.nan, 3.0, 64.0])
    adapter.tensors[f"{base}.alpha"] = torch.tensor(value).reshape(draw.choice([(), (1,), (1, 1)]))


def _double(adapter: Adapter, draw: random.Random) -> None:
    name = _some(adapter, draw)
    other = re.sub(r"^lora_unet_", "lycoris_", name) if draw.random() < 0.5 else name.replace("lora_A", "lora_down")
    adapter.tensors[other] = adapter.tensors[name].clone()


def _metadata(adapter: Adapter, draw: random.Random) -> None:
    entry = draw.choice(["modelspec.architecture", "ss_base_model_version", "ss_network_module", "draft.recipe", "x"])
    words = ["wan2.1", "flux-2-klein", "stable-diffusion-xl-v1-base", "flux", "", "[" * 5000, "é", "qwen_image", "\\"]
    adapter.metadata = {**adapter.metadata, entry: draw.choice(words)}


def _settings(adapter: Adapter, draw: random.Random) -> None:
    name, values = draw.choice(
        [
            ("lora_alpha", [0, 1, 8, -2, "8", None, 10**400, True, 1e308, [3]]),
            ("r", [2, 4, "2", None, 0]),
            ("alpha_pattern", [{"to_q": 9}, {"(": 1}, {"(a+)+$": 1}, [], None, {".*": 7}, {"to_q": "x"}, "to_q"]),
            ("rank_pattern", [{"to_q": 2}, {"to_q": 3}, [], {"": 2}]),
            ("use_rslora", [True, False, None, "no", 1]),
            ("init_lora_weights", [True, "pissa", "gaussian", "eva", "olora", 5]),
            ("use_dora", [True, False]),
            ("peft_type", ["LORA", "LOHA", None, "PeftType.LORA"]),
        ]
    )
    value = draw.choice(values)
    if adapter.config is not None:
        adapter.config[name] = value
        return
    text = adapter.metadata.get("lora_adapter_metadata", "{}")
    if draw.random() < 0.2:
        text = draw.choice(["[" * 90_000, "{", "[]", "null", '{"unet.r": NaN}'])
    else:
        before = {} if text[0] != "{" or len(text) < 2 or "NaN" in text else json.loads(text)
        text = json.dumps({**before, f"{draw.choice(['unet.', 'transformer.', ''])}{name}": value})
    adapter.metadata = {**adapter.metadata, "lora_adapter_metadata": text}


def _foreign(adapter: Adapter, draw: random.Random) -> None:
    adapter.tensors[
        draw.choice(
            [
                "model.diffusion_model.out.2.weight",
                "lora_unet_conv_in.diff",
                "scaled_fp8",
                "bundle_emb.cat.clip_l",
                "unet:0:up",
                "lora_unet_x.lora_down.weight",
                "a" * 3000,
                "",
                "unet.output_blocks.1.1.proj_in.lora_A.weight",
            ]
        )
    ] = torch.ones(2, 2)


CHANGES: dict[str, Callable[[Adapter, random.Random], None]] = {
    "dropped": _drop,
    "swapped": _swap,
    "renamed": _rename,
    "shape": _shape,
    "dtype": _dtype,
    "number": _number,
    "zero": _zero,
    "alpha": _alpha,
    "double": _double,
    "metadata": _metadata,
    "settings": _settings,
    "foreign": _foreign,
    "nothing": lambda adapter, draw: None,
}


_ROLE = re.compile(r"(.+?)(?:\.|_)(lora_(?:down|up|mid|A|B)|lora\.(?:down|up)|hada_\w+|lokr_\w+|alpha)(\..*)?")


def changes(file: Path, config: dict[str, Any] | None, metadata: dict[str, str]) -> dict[tuple[str, str], Tensor]:
    """The change of every module, dense in float64, as the formats' own definitions have it."""
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    paths: dict[tuple[str, str], str] = {}
    for name, tensor in load_file(file).items():
        match = _ROLE.fullmatch(name)
        assert match is not None, name
        base = match[1].replace(".processor.", ".")
        role = {"lora_A": "lora_down", "lora_B": "lora_up"}.get(match[2], match[2].replace("lora.", "lora_"))
        prefix = re.match(r"lora_te\d?_|text_encoders\.clip_h\.transformer\.|text_encoder(_2)?\.", base)
        part = "" if prefix is None else "2" if "2" in prefix[0] else "1"
        path = re.sub(
            r"^(base_model\.model\.)?(lora_unet_|lycoris_|lora_te\d?_|unet\.|transformer\.|diffusion_model\.|"
            r"text_encoders\.clip_h\.transformer\.|text_encoder(_2)?\.)?",
            "",
            base,
        )
        key = part, path.replace(".", "_")
        assert role not in grouped.setdefault(key, {}), name
        grouped[key][role] = tensor.double()
        paths[key] = path
    if config is None and "lora_adapter_metadata" in metadata:
        config = json.loads(metadata["lora_adapter_metadata"])
    return {key: _dense(parts, _scale(key[0], paths[key], config or {})) for key, parts in grouped.items()}


def _scale(part: str, path: str, config: dict[str, Any]) -> Callable[[int], float]:
    """From a rank to alpha / r as peft reads a configuration."""
    mine: dict[str, Any] = {}
    denoiser = "transformer" if re.match("transformer_blocks|single_|joint_|double_", path) else "unet"
    for key, value in config.items():
        owner, _, name = key.rpartition(".")
        if owner in ("", {"": denoiser, "1": "text_encoder", "2": "text_encoder_2"}[part]):
            mine = {**mine, name: value} if owner else {name: value, **mine}
    alpha = mine.get("lora_alpha")
    if alpha is None:
        return lambda rank: 1.0
    patterns = mine.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), path), alpha)
    return lambda rank: alpha / (math.sqrt(rank) if mine.get("use_rslora") else rank)


def _dense(parts: dict[str, Tensor], scale: Callable[[int], float]) -> Tensor:
    def factor(rank: int) -> float:
        return float(parts["alpha"]) / rank if "alpha" in parts else scale(rank)

    def lycoris(rank: int) -> float:
        return float(parts["alpha"]) / rank if "alpha" in parts else 1.0

    if "hada_w1_a" in parts:
        matrix = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return matrix * lycoris(parts["hada_w1_b"].shape[0])
    if any(role.startswith("lokr") for role in parts):
        halves, rank = [], 0
        for number in "12":
            whole = parts.get(f"lokr_w{number}")
            if whole is None:
                rank = parts[f"lokr_w{number}_b"].shape[0]
                whole = parts[f"lokr_w{number}_a"] @ parts[f"lokr_w{number}_b"].flatten(1)
            halves.append(whole.flatten(1))  # at most a kernel of one
        return torch.kron(*halves) * (lycoris(rank) if rank else 1.0)
    down, up = parts["lora_down"], parts["lora_up"]
    if "lora_mid" in parts:
        down = torch.einsum("ijkl,jc->ickl", parts["lora_mid"], down.flatten(1))
    return up.flatten(1) @ down.flatten(1) * factor(down.shape[0])
