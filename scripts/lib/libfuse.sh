#!/usr/bin/env bash
# Make a libfuse of at least version 3.18 available in build/deps/libfuse.
#
# Debian 12 has 3.14, which knows neither passthrough nor io_uring nor a 64-bit copy_file_range.
# Debian's newer source package builds there as it is. It comes from the mirror that this machine
# uses already, through apt with a sources list and state of its own: the system's stay untouched,
# and apt checks signatures and hashes as ever.
#
# Result: build/deps/libfuse/{include,lib/libfuse3.a,lib/pkgconfig/fuse3.pc}, the example
# bin/passthrough_hp (a peer for the benchmarks), and VERSION. Where the system's own libfuse is new
# enough there is only the file SYSTEM with its version.
#
# COWFS_DEPS_CACHE: a directory of finished builds for other clones to reuse
# (default ${XDG_CACHE_HOME:-$HOME/.cache}/cowfs; empty: none).
set -euo pipefail
umask 022

least_version=3.18
suites="forky sid" # The first that has it wins.

self=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
root=$(cd "$(dirname "$self")/../.." && pwd)
deps=$root/build/deps
prefix=$deps/libfuse
stamp=$deps/libfuse.stamp

say() { printf 'libfuse: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# What a finished build depends on: this recipe, the machine's architecture and release.
recipe_key() {
    # shellcheck source=/dev/null
    { cat "$self" && uname -m && (. /etc/os-release && printf '%s %s\n' "$ID" "${VERSION_ID:-}"); } |
        sha256sum | cut -c1-16
}

complete() {
    [ -s "$1/lib/libfuse3.a" ] && [ -s "$1/include/fuse3/fuse_lowlevel.h" ] &&
        [ -s "$1/lib/pkgconfig/fuse3.pc" ] && [ -x "$1/bin/passthrough_hp" ] && [ -s "$1/VERSION" ]
}

ready() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] || return 1
    [ -s "$prefix/SYSTEM" ] || complete "$prefix"
}

system_is_new_enough() {
    pkg-config --atleast-version="$least_version" fuse3 2>/dev/null
}

# Puts the finished directory $1 in place.
adopt() {
    rm -rf "$prefix" "$stamp"
    mv "$1" "$prefix"
    printf '%s\n' "$key" >"$stamp"
}

# The address of the mirror that this machine gets Debian's main archive from. It is asked of apt,
# which reads one-line and deb822 sources alike; security and third-party archives do not carry the
# suites wanted here.
# shellcheck disable=SC2016 # apt's $(...), not the shell's
mirror_uri() {
    local codename uri
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    uri=$(apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)' |
        awk -F'|' -v c="$codename" '$1 == "Debian" && $3 == "main" && $2 == c { print $4; exit }')
    if [ -z "$uri" ]; then # Without downloaded lists apt cannot tell the origin.
        uri=$(apt-get indextargets --no-release-info --format '$(RELEASE)|$(COMPONENT)|$(REPO_URI)' |
            awk -F'|' -v c="$codename" '$2 == "main" && ($1 == c || $1 ~ /^(old)?stable$/) {
                print $3; exit }')
    fi
    [ -n "$uri" ] || return 1
    printf '%s\n' "$uri"
}

keyring() {
    local file
    for file in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        if [ -r "$file" ]; then
            printf '%s\n' "$file"
            return
        fi
    done
    return 1
}

# Downloads and unpacks the source package into $work/src.
get_source() {
    local uri ring suite options dsc
    uri=$(mirror_uri) || die "found no Debian mirror in apt's settings"
    ring=$(keyring) || die "debian-archive-keyring is not installed"
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/download"
    # apt drops its privileges for downloads.
    [ "$(id -u)" != 0 ] || chown _apt "$work/download" 2>/dev/null || true
    options=(-qq -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache"
        -o Acquire::Languages=none -o Acquire::Retries=3)
    for suite in $suites; do
        printf 'deb-src [signed-by=%s] %s %s main\n' "$ring" "$uri" "$suite" \
            >"$work/apt/sources.list"
        rm -f "$work/download"/*
        if apt-get "${options[@]}" update </dev/null >&2 &&
            (cd "$work/download" &&
                apt-get "${options[@]}" source --download-only fuse3 </dev/null >&2); then
            dsc=$(find "$work/download" -name 'fuse3_*.dsc' -print -quit)
            version=$(sed -n 's/^Version: *//p' "$dsc" | head -n 1)
            if dpkg --compare-versions "$version" ge "$least_version"; then
                say "building fuse3 $version of Debian $suite"
                # apt has verified every file against the signed index.
                dpkg-source --no-check -x "$dsc" "$work/src" </dev/null >"$work/log" 2>&1 ||
                    die "unpacking failed: $(tail -n 5 "$work/log")"
                return
            fi
        fi
    done
    die "no Debian suite of ($suites) gave a fuse3 of at least $least_version"
}

# Builds $work/src into $work/out. The prefix is /usr only so that libfuse looks for fusermount3
# where the distribution puts it; the pkg-config file is relocatable.
build_source() {
    local options=()
    # cowfs looks at libfuse's replies on their way (cowfs/fuse_rings.c); its peer is the kernel all
    # the same. Newer versions have that switched off by default.
    ! grep -q "'enable-custom-io'" "$work"/src/meson_options.txt ||
        options+=(-Denable-custom-io=true)
    {
        env -u CFLAGS -u CXXFLAGS -u LDFLAGS -u DESTDIR CC=gcc CXX=g++ \
            meson setup "$work/obj" "$work/src" --prefix=/usr --libdir=lib \
            --buildtype=debugoptimized -Dc_args="-ffile-prefix-map=$work=." \
            -Dcpp_args="-ffile-prefix-map=$work=." -Ddefault_library=static \
            -Dpkgconfig.relocatable=true -Dutils=false -Dexamples=true -Dtests=false \
            -Duseroot=false -Ddisable-mtab=true -Denable-io-uring=true -Dinitscriptdir= \
            ${options[@]:+"${options[@]}"} &&
            ninja -C "$work/obj" lib/libfuse3.a example/passthrough_hp &&
            DESTDIR="$work/stage" meson install -C "$work/obj" --no-rebuild
    } </dev/null >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        die "the build failed"
    }
    grep -q '^#define HAVE_URING' "$work/obj/fuse_config.h" "$work/obj"/*.h ||
        say "warning: built without io_uring"
    mkdir -p "$work/out/bin"
    mv "$work/stage/usr/include" "$work/stage/usr/lib" "$work/out/"
    cp "$work/obj/example/passthrough_hp" "$work/out/bin/"
    printf '%s\n' "$version" >"$work/out/VERSION"
    complete "$work/out" || die "the build lacks files"
}

# Takes the newest usable build out of the cache into $work/cached, or fails.
from_cache() {
    local tarball
    [ -n "$cache" ] && [ -d "$cache" ] || return 1
    while read -r tarball; do
        rm -rf "$work/cached"
        mkdir "$work/cached"
        if (cd "$cache" && sha256sum --status -c "$tarball.sha256") 2>/dev/null &&
            tar -xzf "$cache/$tarball" -C "$work/cached" --no-same-owner 2>/dev/null &&
            complete "$work/cached"; then
            return 0
        fi
        say "the cached $tarball is damaged: building anew"
        rm -f "$cache/$tarball" "$cache/$tarball.sha256"
    done < <(cd "$cache" && find . -maxdepth 1 -name "libfuse-*-$key.tar.gz" -printf '%f\n' | sort -Vr)
    return 1
}

# A cache that cannot be written is no failure.
to_cache() {
    local tarball="libfuse-$version-$key.tar.gz"
    [ -n "$cache" ] || return 0
    {
        mkdir -p "$cache" && tar -czf "$cache/.$tarball.$$" -C "$work/out" . &&
            mv "$cache/.$tarball.$$" "$cache/$tarball" &&
            (cd "$cache" && sha256sum "$tarball" >".$tarball.sum.$$" &&
                mv ".$tarball.sum.$$" "$tarball.sha256")
    } 2>/dev/null || say "could not write to the cache $cache"
}

key=$(recipe_key)
! ready || exit 0

cache=${COWFS_DEPS_CACHE-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/cowfs}
mkdir -p "$deps"
exec 9>"$deps/.lock"
flock 9
! ready || exit 0

work=$(mktemp -d "${TMPDIR:-/tmp}/cowfs-libfuse.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
version=

if system_is_new_enough; then
    mkdir "$work/out"
    pkg-config --modversion fuse3 >"$work/out/SYSTEM"
    adopt "$work/out"
    say "the system's $(cat "$prefix/SYSTEM") will do"
elif from_cache; then
    adopt "$work/cached"
    say "$(cat "$prefix/VERSION"), from the cache"
else
    get_source
    build_source
    to_cache
    adopt "$work/out"
    say "$version is ready"
fi
