"""What a rank stores and moves when 8 billion parameters are trained on 8 to 1,024 devices: a
model, not a measurement. `python bench/sizes.py` prints the table of docs/performance.md.

P parameters lie as fp32 weights, gradients, Adam's two moments and Reptile's anchor, each spread
over `shard` ranks. FSDP2 gathers a block's weights in bf16, forward and again backward, and sums
gradients in fp32; the root (embeddings and head) is gathered once a step and stays: what is held of
both at once is the sum of treering/footprint.py. HSDP then sums its shards over the copies.
"""

from __future__ import annotations

from dataclasses import dataclass

from treering.footprint import FP32, gathered

GIB = 2**30
BF16 = 2
HOST = 8  # devices
LINK, CARD = 450e9, 50e9  # bytes/s in one direction: NVLink of a device, 400 Gbit/s of a card
SPEED = 400e12  # FLOP/s of a device
CHUNK = 2**27  # logits of a chunk of the cross-entropy on a device


@dataclass(frozen=True)
class Llama:
    """A shape; that of Llama 3 8B."""

    depth: int = 32
    width: int = 4096
    key_width: int = 1024  # of all heads that keys and values have
    mlp: int = 14_336
    vocabulary: int = 128_256

    @property
    def block(self) -> int:
        """Parameters of a layer."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_width
        return attention + 3 * self.width * self.mlp + 2 * self.width

    @property
    def root(self) -> int:
        """Parameters outside of layers: embeddings, head, the last norm."""
        return 2 * self.vocabulary * self.width + self.width

    @property
    def parameters(self) -> int:
        return self.depth * self.block + self.root


def stored(model: Llama, shard: int, tokens: int) -> dict[str, float]:
    """Bytes on a rank, activations apart."""
    kept = int(activations(model, "full") * tokens + head(model, tokens))
    part = FP32 * model.parameters / shard
    return {
        "weights": part,
        "gradients": part,
        "moments": 2 * part,
        "anchor": part,
        "gathered": gathered(model.block, model.root, BF16, kept),
    }


def moved(model: Llama, shard: int, replicate: int) -> dict[str, float]:
    """Bytes that a rank sends, and as many that it receives, in a step of one forward pass.

    `links`: to ranks of its copy, in rings; `card`: through the network card that each device has,
    of which a ring through several hosts uses one for each of its parts.
    """
    rest = (shard - 1) / shard
    gathered = BF16 * (2 * model.depth * model.block + model.root) * rest
    summed = FP32 * model.parameters * rest
    copies = 2 * FP32 * model.parameters / shard * (replicate - 1) / replicate
    across = (gathered + summed) / HOST if shard > HOST else 0.0
    return {"links": gathered + summed, "card": across + copies}


def activations(model: Llama, recompute: str) -> float:
    """Bytes that a token's forward pass keeps for the backward one, in bf16, of all layers."""
    d, kv, m = model.width, model.key_width, model.mlp
    kept = {
        # input, norm, q, attention, sum, norm; k, v; gate, up, their product
        "none": BF16 * (6 * d + 2 * kv + 3 * m),
        # input, q, attention, its projection, the MLP's; k, v; gate, up
        "selective": BF16 * (5 * d + 2 * kv + 2 * m),
        "full": BF16 * d,
    }
    return model.depth * kept[recompute]


def head(model: Llama, tokens: int) -> float:
    """Bytes of the chunked cross-entropy at its peak: four tensors as large as a chunk's logits,
    the head's gradient in fp32, and that of the hidden states."""
    logits = min(CHUNK, tokens * model.vocabulary)
    return FP32 * (4 * logits + model.vocabulary * model.width) + BF16 * tokens * model.width


def flops(model: Llama, length: int) -> float:
    """Of a token, forward and backward, attention in full."""
    multiplying = model.parameters - model.vocabulary * model.width
    return 6 * multiplying + 12 * model.depth * model.width * length


def main(tokens: int = 8192) -> None:
    model = Llama()
    print(f"{model.parameters:,} parameters, {tokens:,} tokens on a rank in a step; GiB a rank.\n")
    print("| devices | copies x shards | weights, gradients, moments | anchor | gathered", end="")
    print(" | sent to its copy | sent by its card | sending / computing |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    computing = tokens * flops(model, tokens) / SPEED
    for devices in (8, 16, 32, 64, 128, 256, 512, 1024):
        for shard in sorted({HOST, devices}, reverse=True):
            has, sends = stored(model, shard, tokens), moved(model, shard, devices // shard)
            spread = has["weights"] + has["gradients"] + has["moments"]
            cells = [spread, has["anchor"], has["gathered"], sends["links"], sends["card"]]
            time = max(sends["links"] / LINK, sends["card"] / CARD) / computing
            sizes = " | ".join(f"{cell / GIB:.2f}" for cell in cells)
            print(f"| {devices:,} | {devices // shard} x {shard:,} | {sizes} | {time:.2f} |")
    print("\n| recompute | activations of a token, KiB | of the rank's tokens, GiB |")
    print("|---|---:|---:|")
    for recompute in ("none", "selective", "full"):
        each = activations(model, recompute)
        print(f"| {recompute} | {each / 2**10:,.0f} | {each * tokens / GIB:.1f} |")
    whole = 2 * FP32 * tokens * model.vocabulary
    print(f"\nThe chunked cross-entropy has {head(model, tokens) / GIB:.1f} GiB at its peak; whole")
    print(f"logits in fp32 and their gradient would be {whole / GIB:.1f} GiB.")


if __name__ == "__main__":
    main()
