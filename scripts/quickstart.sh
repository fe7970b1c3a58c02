#!/usr/bin/env bash
# From nothing to a trained detector: environment, drawn data set, records, training, test, picture.
# Run it again at any time: finished parts are kept, an interrupted training goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment ""
work="quickstart"
mkdir -p "$work"

# Makes one data set: shapes NAME IMAGES SEED, drawn, then converted.
shapes() {
    if [ ! -e "$work/$1/annotations.json" ]; then
        echo "== Drawing $2 labelled pictures in $work/$1"
        ssd-synthesize --output="$work/$1" --num_images="$2" --seed="$3" --image_size=192 \
            --classes=circle,square,triangle,star,cross,ring --overwrite
    fi
    if [ ! -e "$work/records/$1/manifest.json" ]; then
        echo "== Converting them to records in $work/records/$1"
        ssd_image_to_tf --format=coco --input="$work/$1/annotations.json" --output="$work/records/$1" --overwrite
    fi
}

shapes train 2000 1
shapes val 200 2
echo "== Training a small detector (a few minutes; Ctrl-C is safe, the same command goes on)"
ssd-train --config=quickstart --train="$work/records/train" --run_dir="$work/run"
echo "== Scoring it on pictures it has not seen"
ssd-test --run_dir="$work/run" --data="$work/records/val" --metric=voc07
echo "== Drawing what it finds"
ssd-demo --run_dir="$work/run" --input="$work/val/images/000000.jpg" --output="$work/detections.jpg"
echo
echo "== Done. Look at $work/detections.jpg, then train on your own images: see \"Your own images\" in README.md."
