"""ResNet-50 v1.5 in plain torch (stride in the 3×3), with seeded random weights: written as TorchScript, or timed bare.

    model.py write FILE
    model.py time FILE DEVICE BATCHES SECONDS      one JSON line a batch size

`time` is the independent look at throughput: the same file in the same torch, one call after another, no server.
"""

import json
import sys
import time

import torch
from torch import nn

SHAPE = (3, 224, 224)
WARM_UP_S = 1.0


class Bottleneck(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        outside = 4 * width

        def convolution(a, b, size, stride=1):
            return nn.Sequential(nn.Conv2d(a, b, size, stride, size // 2, bias=False), nn.BatchNorm2d(b))

        self.residual = nn.Sequential(
            convolution(inside, width, 1),
            nn.ReLU(),
            convolution(width, width, 3, stride),
            nn.ReLU(),
            convolution(width, outside, 1),
        )
        straight = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if straight else convolution(inside, outside, 1, stride)
        # A small last scale keeps the activations of random weights from growing block by block.
        nn.init.constant_(self.residual[4][1].weight, 0.2)

    def forward(self, x):
        return torch.relu(self.residual(x) + self.shortcut(x))


def resnet50(seed=50):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for width, blocks, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for block in range(blocks):
            layers.append(Bottleneck(inside, width, stride if block == 0 else 1))
            inside = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000)]
    model = nn.Sequential(*layers).eval()
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model


def write(path):
    model = resnet50()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The published architecture's count: a slip in the table above would change it.
    assert parameters == 25_557_032, parameters
    with torch.no_grad():
        torch.jit.trace(model, torch.zeros(1, *SHAPE)).save(path)
    print(f"ResNet-50 v1.5, {parameters} parameters, torch {torch.__version__}: {path}")


def measure(call, device, seconds):
    """Calls a second, one after another, after a warm-up."""
    def run(duration):
        calls, began = 0, time.perf_counter()
        while True:
            call()
            calls += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elapsed = time.perf_counter() - began
            if elapsed >= duration:
                return calls / elapsed

    run(min(WARM_UP_S, seconds))
    return run(seconds)


def bare(path, device_name, batches, seconds):
    device = torch.device(device_name)
    model = torch.jit.freeze(torch.jit.load(path, map_location=device).eval())
    for batch in batches:
        host = torch.rand(batch, *SHAPE)
        there = host.to(device)
        with torch.inference_mode():
            alone = measure(lambda: model(there), device, seconds)
            copied = measure(lambda: model(host.to(device)).cpu(), device, seconds)
        figures = {
            "batch_size": batch,
            "model_alone_inferences_per_s": alone * batch,
            "with_copies_inferences_per_s": copied * batch,
        }
        print(json.dumps(figures), flush=True)


def main():
    command, path, *rest = sys.argv[1:]
    if command == "write":
        write(path)
    elif command == "time":
        bare(path, rest[0], [int(batch) for batch in rest[1].split(",")], float(rest[2]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
