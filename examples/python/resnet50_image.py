"""A custom inspector in Python: a photo as people send it, not random numbers.

It decodes a PPM image, scales and crops it as ImageNet models are fed, and checks that each answer's best class is the
one expected. modelmeter runs it as its child; in modelmeter.toml:

    [inspectors.resnet50-image]
    command = ["python3", "examples/python/resnet50_image.py", "examples/images/hill.ppm"]
    env = { PYTHONPATH = "python" }   # not needed after: pip install ./python

    modelmeter profile resnet50 --inspector resnet50-image
"""

import argparse
from array import array

from modelmeter import BaseModelInspector, run
from modelmeter.kserve import infer_response

SIDE = 224
# Channel by channel, of images with values from 0 to 1; as torchvision's models are fed.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_ppm(path):
    """Width, height and bytes (red, green, blue, row by row) of a binary PPM file of 8 bits."""
    with open(path, "rb") as file:
        magic, width, height, most, pixels = file.read().split(maxsplit=4)
    width, height = int(width), int(height)
    if magic != b"P6" or int(most) != 255 or len(pixels) != 3 * width * height:
        raise ValueError(f"{path} is not a PPM file of 8 bits")
    return width, height, pixels


def preprocess(width, height, pixels):
    """The square in the middle, scaled to 224 by 224 by bilinear interpolation, normalised, channels first."""
    short = min(width, height)
    left, top, scale = (width - short) / 2, (height - short) / 2, short / SIDE
    axis = [(min(max((i + 0.5) * scale - 0.5, 0), short - 1)) for i in range(SIDE)]
    columns = [(int(left + x), min(int(left + x) + 1, width - 1), (left + x) % 1) for x in axis]
    rows = [(int(top + y), min(int(top + y) + 1, height - 1), (top + y) % 1) for y in axis]
    out = array("f")
    for channel in range(3):
        mean, deviation = MEAN[channel], DEVIATION[channel]
        for y0, y1, fy in rows:
            upper, lower = 3 * width * y0 + channel, 3 * width * y1 + channel
            for x0, x1, fx in columns:
                a = pixels[upper + 3 * x0] * (1 - fx) + pixels[upper + 3 * x1] * fx
                b = pixels[lower + 3 * x0] * (1 - fx) + pixels[lower + 3 * x1] * fx
                out.append(((a * (1 - fy) + b * fy) / 255 - mean) / deviation)
    return out.tobytes()


def best_classes(response):
    """The class with the largest logit, of each image of a batch."""
    ((_, (images, classes), raw),) = infer_response(response).values()
    logits = array("f", bytes(raw))
    rows = [logits[i * classes : (i + 1) * classes] for i in range(images)]
    return [max(range(classes), key=row.__getitem__) for row in rows]


class ResNet50Inspector(BaseModelInspector):
    """Sends one image over and over. `expected`: its class; None: whatever the first answer says."""

    def __init__(self, expected=None, **arguments):
        super().__init__(**arguments)
        self.expected = expected

    def data_preprocess(self, x):
        return preprocess(*read_ppm(x))

    # make_request is the base's own: a KServe v2 request of the batch.

    def infer(self, request, response=None):
        found = best_classes(response)
        if self.expected is None:
            self.expected = found[0]
        if found != [self.expected] * self.batch_size:
            raise ValueError(f"the image is of class {self.expected}, the answer says {found}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--expected", type=int, help="the class of the image [default: what the first answer says]")
    given = parser.parse_args()
    run(ResNet50Inspector, repeat_data=given.image, expected=given.expected)
