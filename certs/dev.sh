#!/bin/sh
# Makes a certificate authority, a serving certificate and a client certificate for a developer's own
# machine, in certs/dev (or the folder named first). More names for the serving certificate may follow,
# as DNS:gangplank.example or IP:10.0.0.1. Needs OpenSSL 1.1.1 or later.
set -eu
umask 077

folder=${1:-$(dirname "$0")/dev}
[ $# -eq 0 ] || shift
names=DNS:localhost,IP:127.0.0.1,IP:::1
for name in "$@"; do
    names=$names,$name
done
mkdir -p "$folder"
cd "$folder"

make_key() {
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"
}

# sign <name> <common name> <extensions>
sign() {
    make_key "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    printf '%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 30 \
        -extfile "$1.ext" -out "$1.crt" 2> /dev/null
    rm "$1.csr" "$1.ext"
}

make_key ca.key
openssl req -x509 -new -key ca.key -sha256 -days 365 -subj "/CN=gangplank development CA" -out ca.crt
sign tls gangplank "subjectAltName=$names
extendedKeyUsage=serverAuth"
sign client kube-apiserver "extendedKeyUsage=clientAuth"
openssl verify -CAfile ca.crt tls.crt client.crt
