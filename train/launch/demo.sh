#!/usr/bin/env bash
# Trains the five networks of the demo one after another and packs them into the bundle that ships with the package.
# Stopping and starting it again carries on where it was. PYTHON names the interpreter, OUT the bundle; PACKAGE is
# unclip_jax.train where a wheel is installed.
set -euo pipefail
python=${PYTHON:-python} package=${PACKAGE:-train} out=${OUT:-unclip_jax/assets/demo}
"$python" -m "$package".clip shapes
"$python" -m "$package".prior shapes
"$python" -m "$package".decoder shapes
# As many steps again from where that one ended, at a rate that rises once more and falls to 0.
"$python" -m "$package".decoder shapes --run.workdir runs/shapes/decoder_2 --start-from runs/shapes/decoder \
  --optim.learning-rate 3e-3
# On crops first, then on whole images, whose edges crops do not show.
for size in 64 128; do
  "$python" -m "$package".upsampler "shapes-$size"
done
"$python" -m "$package".upsampler shapes-64 --run.workdir runs/shapes/upsampler_64_2 --start-from runs/shapes/upsampler_64 \
  --crop-fraction 1 --data.batch-size 8 --run.steps 1000 --optim.learning-rate 1e-3
"$python" -m "$package".upsampler shapes-128 --run.workdir runs/shapes/upsampler_128_2 --start-from runs/shapes/upsampler_128 \
  --crop-fraction 1 --data.batch-size 4 --run.steps 600 --optim.learning-rate 1e-3
"$python" -m "$package".pack "$out" --overwrite --dtype float16 \
  --name demo --license Apache-2.0 \
  --description "A small cascade trained on captioned shapes: one or two coloured shapes, 128 px." \
  --clip runs/shapes/clip --prior runs/shapes/prior --decoder runs/shapes/decoder_2 \
  --upsamplers runs/shapes/upsampler_64_2 runs/shapes/upsampler_128_2
# Principal components of z_i, which probing needs, and the prior's statistics for Analytic-DPM.
"$python" -m "$package".measure "$out"
