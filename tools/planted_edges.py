"""Bugs to plant where bytes, models and programs of strangers come in; see `tools.mutants` for the form."""

from __future__ import annotations

CODEC = "crdtchain/codec.py"
SIGNING = "crdtchain/signing.py"
SHAPES = "crdtchain/shapes.py"
MODELS = "crdtchain/adapters/models.py"
METRICS = "node/worker/metrics.py"
KEYS = "crdtchain/adapters/keys.py"
HARVEST = "node/worker/sandbox/harvest.py"
DOCKER_SPEC = "node/worker/sandbox/docker_spec.py"
WASM_CHILD = "node/worker/sandbox/wasm_child.py"

VECTORS = "tests/vectors tests/unit/test_codec.py"
SIGNATURES = "tests/unit/test_signing.py tests/vectors"
MODEL_TESTS = "tests/unit/adapters/test_models.py"
METRIC_TESTS = "tests/unit/node/test_metrics.py"
HARVEST_TESTS = "tests/unit/node/test_harvest.py"
DOCKER_SHAPE = "tests/unit/node/test_docker_shape.py"
DOCKER_TESTS = "tests/integration/test_docker_sandbox.py"
WASM_TESTS = "tests/integration/test_wasm_sandbox.py"
RULES = "tests/property/test_oracle_scenes.py tests/vectors"

PLANTED: list[tuple[str, str, str, str, str]] = [
    ("codec-key-order", CODEC, "if key <= last:", "if key < last:", VECTORS),
    ("codec-depth", CODEC, "if len(stack) == DEPTH_MAX:", "if len(stack) == DEPTH_MAX + 1:", VECTORS),
    ("codec-items", CODEC, "if items > ITEMS_MAX:", "if items > ITEMS_MAX + 1:", VECTORS),
    (
        "codec-link-counts-two",
        CODEC,
        "            pos += _LINK_BYTES\n            items += 1\n",
        "            pos += _LINK_BYTES\n",
        VECTORS,
    ),
    (
        "codec-shortest-length",
        CODEC,
        "elif head == 0x58 and data[pos + 1] > 23:",
        "elif head == 0x58 and data[pos + 1] > 22:",
        VECTORS,
    ),
    ("codec-trailing", CODEC, "    if end < len(data):\n", "    if end + 1 < len(data):\n", VECTORS),
    ("codec-block-bytes", CODEC, "if len(data) > BLOCK_BYTES_MAX:", "if len(data) > BLOCK_BYTES_MAX + 1:", VECTORS),
    (
        "codec-utf8-in-keys",
        CODEC,
        "            if not key.isascii():\n                _validate_utf8(data, pos, end)\n",
        "",
        VECTORS,
    ),
    (
        "key-not-canonical",
        SIGNING,
        "return y >= _FIELD or y in _SMALL_ORDER_YS",
        "return y in _SMALL_ORDER_YS",
        SIGNATURES,
    ),
    ("key-of-small-order", SIGNING, "return y >= _FIELD or y in _SMALL_ORDER_YS", "return y >= _FIELD", SIGNATURES),
    ("signature-r", SIGNING, "if _is_refused_point(signature[:32]):", "if False:", SIGNATURES),
    ("signature-s", SIGNING, '"little") >= _ORDER:', '"little") > _ORDER:', SIGNATURES),
    ("signature-network", SIGNING, "return OP_PREFIX + network + payload", "return OP_PREFIX + payload", SIGNATURES),
    (
        "parents-sorted",
        SHAPES,
        "if len(op.parents) > 1 and list(op.parents) != sorted(set(op.parents)):",
        "if False:",
        RULES,
    ),
    ("model-finite", MODELS, '        _check_finite(array, f"array {name}")\n', "        pass\n", MODEL_TESTS),
    (
        "model-declared-size",
        MODELS,
        "if not spec.byte_count < info.file_size <= spec.byte_count + NPY_HEADER_BYTES_MAX:",
        "if False:",
        MODEL_TESTS,
    ),
    (
        "model-safetensors-overlap",
        MODELS,
        "if any(first[1] != second[0] for first, second in itertools.pairwise(ranges)):",
        "if False:",
        MODEL_TESTS,
    ),
    ("model-bool", MODELS, "if numbers.size and numbers.max() > 1:", "if False:", MODEL_TESTS),
    ("loss-probabilities", METRICS, "if predictions.min() < 0:", "if False:", METRIC_TESTS),
    (
        "loss-renormalised",
        METRICS,
        "_class_labels(labels, predictions.shape[1])] / sums",
        "_class_labels(labels, predictions.shape[1])]",
        METRIC_TESTS,
    ),
    (
        "loss-rounding",
        METRICS,
        "Micros(round(Fraction(loss) * 1_000_000))",
        "Micros(int(Fraction(loss) * 1_000_000))",
        METRIC_TESTS,
    ),
    ("loss-clipping", METRICS, "PROBABILITY_MIN = 1e-12", "PROBABILITY_MIN = 1e-15", METRIC_TESTS),
    (
        "key-file-mode",
        KEYS,
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)",
        "tests/unit/adapters/test_keys.py",
    ),
    (
        "key-file-replaced",
        KEYS,
        "os.O_CREAT | os.O_EXCL, 0o600",
        "os.O_CREAT | os.O_TRUNC, 0o600",
        "tests/unit/adapters/test_keys.py",
    ),
    ("harvest-links", HARVEST, "if not member.isreg() or member.issparse():", "if member.issparse():", HARVEST_TESTS),
    ("harvest-twice", HARVEST, "    if name in seen:\n", "    if False:\n", HARVEST_TESTS),
    ("harvest-total", HARVEST, " or found.total_bytes > total_bytes_max:", ":", HARVEST_TESTS),
    (
        "harvest-names",
        HARVEST,
        'if parts[0] != root or any(part in ("", ".", "..") for part in parts):',
        "if parts[0] != root:",
        HARVEST_TESTS,
    ),
    ("docker-network", DOCKER_SPEC, '"NetworkMode": "none",', '"NetworkMode": "bridge",', DOCKER_SHAPE),
    ("docker-capabilities", DOCKER_SPEC, '"CapDrop": ["ALL"],', '"CapDrop": ["NET_RAW"],', DOCKER_SHAPE),
    ("docker-swap", DOCKER_SPEC, '"MemorySwap": memory_bytes,  #', '"MemorySwap": -1,  #', DOCKER_SHAPE),
    (
        "docker-input-writable",
        DOCKER_SPEC,
        "names.volume_in, read_only=True)",
        "names.volume_in, read_only=False)",
        DOCKER_TESTS + " -k nothing_but_tmp_and_out",
    ),
    (
        "docker-image-volumes",
        DOCKER_SPEC,
        "for place in image.volumes if place not in _OWN_PLACES}",
        "for place in ()}",
        DOCKER_SHAPE,
    ),
    (
        "docker-environment",
        DOCKER_SPEC,
        'dropped = sorted({"HOSTNAME", *image.env_names} - set(wanted))',
        "dropped: list[str] = []",
        DOCKER_SHAPE,
    ),
    ("wasm-imports", WASM_CHILD, "    if module.imports:\n", "    if False:\n", WASM_TESTS),
    ("wasm-memory", WASM_CHILD, "set_limits(memory_size=memory_bytes,", "set_limits(memory_size=-1,", WASM_TESTS),
]
