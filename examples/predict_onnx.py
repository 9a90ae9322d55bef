"""Segment an image with an exported model, without aucseg: python predict_onnx.py model.onnx photo.jpg labels.png."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model_path, image_path, label_path = sys.argv[1:]
session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
settings = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}

image = np.array(Image.open(image_path).convert("RGB"))
pixels = ((image - settings["pixel_mean"]) / settings["pixel_std"]).astype(np.float32)
height, width = image.shape[:2]
pixels = np.pad(pixels, [(0, -height % settings["stride"]), (0, -width % settings["stride"]), (0, 0)])
logits = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[None]})[0]
labels = logits[0, :, :height, :width].argmax(axis=0).astype(np.uint8)

output = Image.fromarray(labels)
output.putpalette(np.array(settings["palette"], np.uint8).tobytes())
output.save(label_path)
for class_id, name in enumerate(settings["class_names"]):
    print(f"{name}: {(labels == class_id).mean():.1%}")
