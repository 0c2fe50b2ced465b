# Complete backups are /backups/<UTC stamp>; unfinished ones are /backups/.partial-<pod>. RETENTION_DAYS is the plan's.
shopt -s nullglob
umask 077
work="/backups/.partial-$HOSTNAME"

complete_backups() {
  local path
  for path in /backups/[0-9]*T[0-9]*Z; do if [ -d "$path" ]; then printf '%s\n' "$path"; fi; done
}

free_kib() { df --output=avail --block-size=1K /backups | tail -n 1 | tr -d ' '; }

# Frees the volume before anything is written, so that a full one recovers. The newest complete backup always stays.
prepare_backup() {
  local path newest oldest cutoff needed
  # A killed attempt leaves its directory. A Job's pods follow each other; another Job has ended after two hours.
  for path in /backups/.partial-*; do
    if [[ "$path" == "${work%-*}-"* || "$(stat --format=%Y "$path")" -lt "$(date -d '-2 hours' +%s)" ]]; then
      rm -rf "$path"
    fi
  done
  newest="$(complete_backups | tail -n 1)"
  cutoff="/backups/$(date -u -d "-$RETENTION_DAYS days" +%Y%m%dT%H%M%SZ)"
  complete_backups | while read -r path; do
    if [[ "$path" < "$cutoff" && "$path" != "$newest" ]]; then rm -rf "$path"; fi
  done
  if [ -n "$newest" ]; then
    # The next one is about as large as the last one.
    needed="$(( $(du --summarize --block-size=1K "$newest" | cut -f 1) * 5 / 4 ))"
    while [ "$(free_kib)" -lt "$needed" ]; do
      oldest="$(complete_backups | sed -n 1p)"
      if [ "$oldest" = "$newest" ]; then break; fi
      echo "The backup volume is full: $oldest is removed before its $RETENTION_DAYS days are over." >&2
      rm -rf "$oldest"
    done
  fi
  mkdir "$work"
}

# The application goes on writing: tar ends with 1 when a file changed or vanished, with 2 when it failed. A pipe, because
# `tar --gzip` that fails leaves its gzip behind, which creates the archive while the directory is being removed.
archive_data() {
  local -a codes=(0 0)
  tar --create --file=- --directory=/data . | gzip > "$work/data.tar.gz" || codes=("${PIPESTATUS[@]}")
  if [ "${codes[0]}" -gt 1 ] || [ "${codes[1]}" -ne 0 ]; then return 1; fi
  gzip --test "$work/data.tar.gz"
}

# Gives a finished backup its name. Fails when the name is taken.
finish_backup() {
  (cd "$work" && sha256sum -- * > SHA256SUMS)
  sync
  mv --no-target-directory "$work" "/backups/$(date -u +%Y%m%dT%H%M%SZ)"
}
