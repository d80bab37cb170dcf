# syntax=docker/dockerfile:1

# A static binary in an image that holds nothing else.
#
#   docker build -t tidegate:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 -t tidegate:0.1.0 .
#
# The build runs on the builder's own architecture; TARGETARCH, which BuildKit sets from --platform, says
# what it is for: amd64 or arm64. There is no C in tidegate, so no other compiler is needed for that.
ARG RUST_IMAGE=rust:1.95-alpine
FROM --platform=$BUILDPLATFORM $RUST_IMAGE AS build
ARG TARGETARCH
# musl or gnu; with either the binary is static.
ARG LIBC=musl
# release, or quick: the same code, built in a third of the time.
ARG PROFILE=release
# What tidegate_build_info tells, such as the commit.
ARG REVISION=unknown
ENV RUSTFLAGS="-C target-feature=+crt-static"
WORKDIR /src
RUN case "${TARGETARCH:-$(uname -m)}" in \
        amd64 | x86_64) arch=x86_64 ;; \
        arm64 | aarch64) arch=aarch64 ;; \
        *) echo "there is no build for $TARGETARCH" >&2; exit 1 ;; \
    esac \
    && target="$arch-unknown-linux-$LIBC" && echo "$target" >/target \
    && if command -v apk >/dev/null; then apk add --no-cache musl-dev; fi \
    && if command -v rustup >/dev/null; then rustup target add "$target"; fi \
    && if [ "$arch" != "$(uname -m)" ]; then \
        mkdir -p /.cargo && printf '[target.%s]\nlinker = "rust-lld"\n' "$target" >/.cargo/config.toml; \
    fi

# The dependencies first: they change less often than the code, and take longer to build. A target that
# Cargo.toml names has to be there, if only as a stand-in.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
    && sed -n '/^\[\[bench\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml | while read -r bench; do \
        echo 'fn main() {}' >"benches/$bench.rs"; \
    done \
    && cargo build --profile "$PROFILE" --locked --bin tidegate --target "$(cat /target)" \
    && rm -r src

COPY src src
# cargo looks at times of modification, and those of the stand-ins are newer than the sources.
RUN find src -type f -exec touch {} + \
    && TIDEGATE_REVISION="$REVISION" cargo build --profile "$PROFILE" --locked --bin tidegate --target "$(cat /target)" \
    && cp "target/$(cat /target)/$PROFILE/tidegate" /tidegate

FROM scratch
COPY --from=build /tidegate /tidegate
COPY LICENSE-MIT LICENSE-APACHE /licenses/

# Nobody in particular; there is no user database in here.
USER 65532:65532

# The admin side listens on the container's own loopback interface. For Prometheus, or the kubelet, to reach it:
# TIDEGATE_ADMIN=0.0.0.0:9180. The health check finds it by the environment, also in the file that TIDEGATE_CONFIG
# names; what the command line of "run" says (-c, --admin) it does not see.
EXPOSE 8080 9180
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/tidegate", "healthcheck"]
ENTRYPOINT ["/tidegate"]
CMD ["run"]
