"""Peak memory of converting and of loading a checkpoint of 4 GB in the native layout, in units of its stored weights.

Each is measured in a process of its own as the peak of the resident set above the level after imports; mapped pages of files
count. After loading, every page of the weights is touched, so that none is only promised. `plain_ratio` is torch.load and
load_state_dict, as the released code does it. Last line: one JSON object.

    python benchmarks/load_memory.py [--gigabytes 4] [--folder FOLDER]
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WIDTH, FFN, HEADS = 1536, 8960, 12  # of the 1.3B model; more layers make up the size


def write_checkpoint(folder: Path, gigabytes: float, shards: int) -> tuple[Path, Path]:
    """A native transformer in bfloat16, as one .pth and as shards, with the small other parts that conversion wants."""
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import native  # type: ignore[import-not-found]  # of tests

    block = 8 * WIDTH * WIDTH + 2 * WIDTH * FFN
    layers = max(2, round(gigabytes * 1e9 / 2 / block))
    native.FFN, native.FREQ, native.TEXT = FFN, 256, 4096
    wan = folder / "wan"
    (wan / "google").mkdir(parents=True)
    vocabulary = native.tokenizer(wan / "google" / "umt5-xxl")
    torch.save(native.autoencoder(), wan / "Wan2.1_VAE.pth")
    native_text = native.text_encoder(vocabulary, width=64)
    torch.save(native_text, wan / "models_t5_umt5-xxl-enc-bf16.pth")
    native.TEXT = 64
    (wan / "config.json").write_text(json.dumps({"dim": WIDTH, "num_heads": HEADS, "num_layers": layers}))
    state = {}
    for part in range(layers):  # layer by layer, since the writer should not need the memory either
        one = native.transformer(seed=part, dim=WIDTH, layers=1)
        state |= {k.replace("blocks.0.", f"blocks.{part}."): v.bfloat16() for k, v in one.items() if "blocks" in k or not part}
    torch.save(state, folder / "phantom.pth")
    names, where = list(state), {}
    (folder / "shards").mkdir()
    each = math.ceil(len(names) / shards)
    for number in range(shards):
        file = f"Phantom_Wan_14B-{number + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[number * each : (number + 1) * each]
        save_file({n: state[n] for n in chosen}, folder / "shards" / file)
        where |= dict.fromkeys(chosen, file)
    (folder / "shards" / "Phantom_Wan_14B.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return wan, folder / "phantom.pth"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(work) -> int:
    """Bytes of the peak above the level before `work`."""
    level, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(peak, resident()) - level


def child(kind: str, folder: Path) -> None:
    """One measurement in this process; prints bytes."""
    import torch
    from diffusers import WanTransformer3DModel

    from phantom_s2v.models import weights  # the level is taken after these
    from phantom_s2v.models.wan import convert  # the level is taken after these

    torch.set_num_threads(1)
    layers = json.loads((folder / "wan" / "config.json").read_text())["num_layers"]
    convert.KNOWN[WIDTH] = (HEADS, layers)

    def plain() -> None:
        config = json.loads((folder / "converted" / "transformer" / "config.json").read_text())
        model = WanTransformer3DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
        state = torch.load(folder / "phantom.pth", weights_only=True, map_location="cpu")
        names = convert.renamed(state, convert.convert_wan_transformer_to_diffusers)
        model.load_state_dict({new: state[old] for new, old in names.items()}, strict=False)

    def load() -> None:
        model = weights.load_part(WanTransformer3DModel, folder / "converted" / "transformer", torch.bfloat16)
        for parameter in model.parameters():
            parameter.view(torch.uint8).flatten()[:: os.sysconf("SC_PAGE_SIZE")].max()

    def converting(source: str, out: str) -> None:
        convert.convert(folder / "wan", folder / source, folder / out, lambda *_: None)

    works = {
        "plain": plain,
        "load": load,
        "convert": lambda: converting("shards", "converted"),
        "convert_file": lambda: converting("phantom.pth", "converted_file"),
    }
    print(measured(works[kind]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where 12 GB can be written; a temporary folder by default")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        _, file = write_checkpoint(folder, arguments.gigabytes, arguments.shards)
        stored = file.stat().st_size
        shard = max(p.stat().st_size for p in (folder / "shards").glob("*.safetensors"))
        peaks = {}
        for kind in ("convert", "convert_file", "load", "plain"):
            command = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            peaks[kind] = int(done.stdout.split()[-1]) / stored
            print(f"{kind}: {peaks[kind]:.3f} of {stored / 1e9:.2f} GB")
        print(
            json.dumps(
                {
                    "load_ratio": round(peaks["load"], 4),
                    "convert_ratio": round(peaks["convert"], 4),
                    "convert_single_file_ratio": round(peaks["convert_file"], 4),
                    "largest_shard_ratio": round(shard / stored, 4),
                    "plain_ratio": round(peaks["plain"], 4),
                    "stored_bytes": stored,
                }
            )
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
