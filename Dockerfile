# Two images from one file:
#
#   docker build --target runtime -t smartspec/runtime .            a replica: torch, transformers, the server, the bundled models
#   docker build --target operator -t smartspec/operator .          the controller: no torch
#
# TORCH_INDEX chooses the torch build, e.g. https://download.pytorch.org/whl/cpu for a small CPU image; unset, pip's own
# configuration decides, which usually means the CUDA build.
#
# Layers go from what changes least to what changes most: Debian, torch, other packages, models, our own code. Neither
# pip nor a compiler of wheels is in the images: packages come from stages that have them.
FROM docker.io/library/debian:bookworm-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 65532 smartspec \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin smartspec
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp

# /venv is filled by a pip beside it; what is installed under another prefix is laid over it later, layer by layer.
FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --without-pip /venv && python3 -m venv /build && /build/bin/pip install "hatchling>=1.25"

# The dependencies as files of their own: a pyproject.toml that says something else new leaves the layers below cached.
FROM build AS requirements
COPY pyproject.toml /
RUN python3 -c 'import pathlib, tomllib; \
p = tomllib.loads(pathlib.Path("/pyproject.toml").read_text())["project"]; \
[pathlib.Path(f"/{names[0]}.txt").write_text("\n".join(sum((p["optional-dependencies"][n] for n in names), p["dependencies"]))) \
 for names in (["operator"], ["runtime", "tracing"])]'

FROM build AS package
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY operator operator
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /venv/bin/python install --no-deps --prefix /package /wheels/*.whl

FROM build AS operator-packages
COPY --from=requirements /operator.txt /
# The Kubernetes client is two generated copies of some 800 modules: compiled alone, without docstrings, they take a quarter.
RUN /build/bin/pip --python /venv/bin/python install -r /operator.txt \
    && cd /venv/lib/python3*/site-packages && find . -type d -name tests -prune -exec rm -r {} + \
    && find kubernetes -name __pycache__ -prune -exec rm -r {} + \
    && python3 -m compileall -q -b -o 2 kubernetes && find kubernetes -name '*.py' -delete

FROM base AS operator
COPY --from=operator-packages /venv /venv
EXPOSE 8080
ENTRYPOINT ["smartspec-operator"]
CMD ["run", "--all-namespaces", "--probe-port", "8080"]
USER 65532:65532
COPY --from=package /package /venv

FROM build AS torch
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
RUN /build/bin/pip --python /venv/bin/python install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION" \
    # Its own test programs and the tests of what it brings: an eighth of it.
    && cd /venv/lib/python3*/site-packages && rm -rf torch/test torch/bin/protoc* torch/bin/test_* torch/bin/*Test \
    && find . -type d -name tests -prune -exec rm -r {} +

FROM torch AS runtime-packages
COPY --from=requirements /runtime.txt /
RUN /build/bin/pip --python /venv/bin/python install --prefix /packages -r /runtime.txt

FROM base AS server
# For the compiled forward on CPUs, and an OpenMP library to choose by SMARTSPEC_OPENMP=libomp.so.5 (1 MB). Where CPUs are
# not served on, --build-arg COMPILER= leaves it out.
ARG COMPILER="g++ libpython3-dev libomp5"
RUN if [ -n "$COMPILER" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $COMPILER \
        && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log; \
    fi \
    && mkdir /cache && chown 65532:65532 /cache
COPY --from=torch /venv /venv
COPY --from=runtime-packages /packages /venv
COPY examples/models/stdlib-target /models/stdlib-target
COPY examples/models/stdlib-draft /models/stdlib-draft
# The root file system may be read-only: what is written goes to /cache and /tmp.
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
EXPOSE 8000 8001
ENTRYPOINT ["smartspec"]
CMD ["serve", "/models/stdlib-target", "--draft", "/models/stdlib-draft", "--host", "0.0.0.0", "--port", "8000"]
USER 65532:65532
COPY --from=package /package /venv

# What numba compiles, for all processors of a level: a replica that compiled it for itself would start half a minute later.
FROM server AS kernels
USER root
RUN python3 -m smartspec.precompile /kernels

FROM server AS runtime
COPY --from=kernels /kernels /kernels
# Unpacked at each start to where numba may write. Not under /cache: that may be a volume which replicas of two versions share.
ENV SMARTSPEC_KERNELS=/kernels NUMBA_CACHE_DIR=/tmp/numba
