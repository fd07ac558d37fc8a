# Images without Docker and without a registry: part of `cluster`, which sources it.

BASE=docker.io/library/debian:bookworm-slim

overlay_works() {                  # where the cache itself lies on an overlay (a container), it does not
  local probe status=0; probe=$(mktemp -d "$CACHE/overlay.XXXXXX")
  mkdir "$probe"/{lower,upper,work,merged}
  mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null || status=1
  umount "$probe/merged" 2>/dev/null || true
  rm -rf "$probe"; return $status
}

storage() {                        # a store of our own: the user's images are neither used nor touched
  programs "${IMAGE_PROGRAMS[@]}"
  mkdir -p "$CACHE"
  [[ -e $CACHE/storage.conf ]] ||
    printf '[storage]\ndriver = "%s"\ngraphroot = "%s"\nrunroot = "/run/smartspec-storage"\n' \
      "$(overlay_works && echo overlay || echo vfs)" "$CACHE/storage" >"$CACHE/storage.conf"
  export CONTAINERS_STORAGE_CONF=$CACHE/storage.conf
  unset STORAGE_DRIVER
}

qualified() {                      # qualified NAME: with the registry that Kubernetes puts before a name without one
  case $1 in
    localhost/* | *.*/* | *:*/*) echo "$1" ;;
    */*) echo "docker.io/$1" ;;
    *) echo "docker.io/library/$1" ;;
  esac
}

base() {
  storage
  [[ -n $(buildah images -q "$BASE" 2>/dev/null) ]] && return
  timed "base image $BASE" debian
}

debian() {                         # what the public slim image is made of: a minimal Debian less documentation and caches
  local root c; root=$(mktemp -d "$CACHE/debian.XXXXXX")
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$(mirror)" >"$CACHE/debootstrap.log" 2>&1 ||
    { tail -n 20 "$CACHE/debootstrap.log" >&2; exit 1; }
  rm -rf "$root"/usr/share/{doc,info,lintian,locale,man}/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/*-old "$root"/var/log/*.log
  printf 'path-exclude /usr/share/%s/*\n' doc info lintian locale man >"$root/etc/dpkg/dpkg.cfg.d/docker"
  printf '%s\n' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' 'Acquire::Languages "none";' \
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' >"$root/etc/apt/apt.conf.d/docker-clean"
  c=$(buildah from scratch); buildah add -q "$c" "$root" / >/dev/null
  buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$c"
  buildah commit -q "$c" "$BASE" >/dev/null; buildah rm "$c" >/dev/null
  rm -rf "$root"
}

sources() {                        # sources TARGET: a hash of all that the image is made of
  local included; mapfile -t included < <(sed -n 's/^!//p' "$ROOT/.dockerignore")
  (
    cd "$ROOT"
    echo "$1 ${TORCH_INDEX:-} $(buildah images -q --no-trunc "$BASE")"
    find Dockerfile .dockerignore "${included[@]}" -type f ! -name '*.pyc' ! -name '*.nb[ci]' -print0 | sort -z | xargs -0 sha256sum
  ) | sha256sum | cut -d' ' -f1
}

image() {                          # image TARGET NAME
  base
  mkdir -p "$CACHE"; "${PYTHON:-python3}" "$ROOT/tests/pip_configuration.py" "$CACHE/pip.conf" >"$CACHE/pip.paths"
  # The public index would bring CUDA's torch: gigabytes that no node here can use. A machine with packages of its own knows.
  if [[ -z ${TORCH_INDEX+x} ]] && ! grep -qE '^(index-url|extra-index-url|find-links)' "$CACHE/pip.conf"; then
    export TORCH_INDEX=https://download.pytorch.org/whl/cpu
  fi
  local name hash found; name=$(qualified "$2") hash=$(sources "$1")
  found=$(buildah inspect --type image --format '{{index .OCIv1.Config.Labels "smartspec.io/sources"}}' "$name" 2>/dev/null || true)
  if [[ $found == "$hash" ]]; then say "image $name: nothing has changed"; return; fi
  timed "image $name" built "$1" "$name" "$hash"
}

built() {                          # built TARGET NAME HASH
  # This machine's certificates and pip configuration are lent to the build, and no part of what comes out of it.
  local lent=() path
  [[ -d /etc/ssl/certs ]] && lent+=(-v /etc/ssl/certs:/etc/ssl/certs:ro)
  while read -r path; do lent+=(-v "$path:$path:ro"); done <"$CACHE/pip.paths"
  lent+=(-v "$CACHE/pip.conf:/etc/pip.conf:ro")
  buildah bud --layers --isolation chroot "${lent[@]}" ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} \
    --label "smartspec.io/sources=$3" --target "$1" --tag "$2" "$ROOT" >"$CACHE/image-$1.log" 2>&1 ||
    { tail -n 40 "$CACHE/image-$1.log" >&2; exit 1; }
  say "image $2: $(size "$2") MB above its base"
}

bytes() {                          # of an image's root file system
  local c m; c=$(buildah from --pull-never "$1"); m=$(buildah mount "$c")
  du -s --apparent-size --block-size=1 "$m" | cut -f1
  buildah rm "$c" >/dev/null
}
size() { storage; echo $((($(bytes "$(qualified "$1")") - $(bytes "$BASE")) / 1000000)); }

loaded() { ctr -a "$DIR/containerd.sock" -n k8s.io images ls -q "name==$1" 2>/dev/null | grep -q .; }

load() {                           # load FILE|NAME
  if [[ -f $1 ]]; then import <"$1"; return; fi
  local name id mark; storage
  name=$(qualified "$1"); id=$(buildah images -q --no-trunc "$name"); mark=$CACHE/containerd/${name//\//,}.id
  [[ -n $id ]] || { say "there is no image $name: 'cluster image TARGET $1' makes it"; exit 1; }
  [[ -e $mark && $(<"$mark") == "$id" ]] && loaded "$name" && return
  timed "onto the node: $name" transferred "$name"
  echo "$id" >"$mark"
}

import() { ctr -a "$DIR/containerd.sock" -n k8s.io images import - >/dev/null; }

transferred() {                    # transferred NAME: compressed on the way, which is less to write to the disk
  rm -rf "$DIR/image"; mkdir "$DIR/image"
  buildah push -q "$1" "oci:$DIR/image:$1"
  tar -C "$DIR/image" -cf - . | import
  rm -rf "$DIR/image"
}
