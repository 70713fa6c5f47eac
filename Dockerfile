# CPUs: docker build -t imgclf .      NVIDIA GPUs: docker build --build-arg EXTRA=cuda -t imgclf-cuda .
#
#     docker run --rm --user "$(id -u)" -v "$PWD:/work" imgclf imgclf-train --config=cnn
#
# Runs, caches and downloaded data are written to the mounted folder.
FROM python:3.13-slim

# An optional dependency of pyproject.toml: cpu, cuda, tpu, slurm or none.
ARG EXTRA=cpu

# oneDNN needs it.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY configs configs
COPY imgclf_jax imgclf_jax
RUN pip install --no-cache-dir --constraint=requirements/py313.txt ".${EXTRA:+[$EXTRA]}"

RUN useradd --home-dir=/work --create-home imgclf
USER imgclf
ENV HOME=/work
WORKDIR /work
CMD ["python", "-m", "imgclf_jax"]
