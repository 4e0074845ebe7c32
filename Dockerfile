# The image: one static binary and nothing else. For several architectures:
#   docker buildx build --platform linux/amd64,linux/arm64 --tag <image> .
# Rust's own versions and Cargo.lock pin what it is made of.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base binutils
WORKDIR /src
COPY . .
RUN binary=$(sh .ci/static) && install -D -m 0555 "$binary" /out/gangplank

FROM scratch
COPY --from=build /out/gangplank /gangplank
# The numbers that the chart names; there is no file of users to look up.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/gangplank"]
CMD ["serve", "--help"]
