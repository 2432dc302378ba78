# Mneme with everything in its lock files, for one machine or the nodes of a cluster, with or without a GPU:
#
#   docker build --tag mneme .
#   docker run --rm --shm-size=2g --volume "$PWD/runs:/home/mneme/runs" mneme mneme train delayed_cue
#
# On a GPU, `--gpus all` and NVIDIA's container toolkit on the host: torch brings its own CUDA.

FROM python:3.12.11-slim-bookworm

# A compiler, for mamba-ssm and for Triton's kernels; what Ray's launcher and a terminal expect of a node.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make openssh-client procps rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mneme \
    && install --directory --owner mneme --group mneme /home/mneme/mneme /home/mneme/runs

USER mneme
WORKDIR /home/mneme/mneme
COPY --chown=mneme:mneme Makefile pyproject.toml requirements.lock requirements-linux.lock README.md LICENSE ./
COPY --chown=mneme:mneme mneme mneme
COPY --chown=mneme:mneme envs envs
COPY --chown=mneme:mneme controllers controllers
COPY --chown=mneme:mneme rollout_workers rollout_workers
COPY --chown=mneme:mneme learner learner
COPY --chown=mneme:mneme distributed distributed
COPY --chown=mneme:mneme configs configs
RUN PIP_NO_CACHE_DIR=1 make setup PYTHON=python3.12

# A Ray of this image asks for a token, and finds it in ~/.ray/auth_token or where RAY_AUTH_TOKEN_PATH says.
ENV PATH=/home/mneme/mneme/.venv/bin:$PATH RAY_AUTH_MODE=token
WORKDIR /home/mneme
CMD ["mneme", "--help"]
