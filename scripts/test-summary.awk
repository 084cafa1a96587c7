# Reads the output of `cargo test` and prints what failed, what was skipped, and the totals as its last line:
# "N passed, N failed, N skipped". Fails if a test failed or a test binary ended without a result.
#
# A skipped test is one that cargo calls ignored, or one that passed after it printed a line that begins with SKIPPED.

function finish_binary() {
  if (running != "") {
    failed[++failures] = running ": ended without a result"
    running = ""
  }
  passed_by_skipping = 0
}

/^ +Running / {
  finish_binary()
  path = $0
  sub(/^.*\(/, "", path); sub(/\)[^)]*$/, "", path)
  sub(/^.*\//, "", path); sub(/-[0-9a-f]+$/, "", path)
  binary = running = path
  next
}

/^ +Doc-tests / {
  finish_binary()
  binary = running = $2 " (documentation)"
  next
}

# The list of names comes last under "failures:"; what the failed tests printed comes first, under the same word.
/^failures:$/ { listing = 1; names = 0; next }
listing && /^    [^ ]/ { name[++names] = substr($0, 5); next }
listing && !/^$/ && !/^test result: / { listing = 0; names = 0 }

/^test .* \.\.\. ignored/ {
  line = $0
  sub(/^test /, "", line); sub(/ \.\.\. ignored/, "", line)
  skipped[++skips] = binary ": " line
}

# With one thread the name of the running test stands before the message.
/^SKIPPED / || /^test .* \.\.\. SKIPPED / {
  line = $0
  sub(/^.*SKIPPED /, "", line)
  skipped[++skips] = binary ": " line
  passed_by_skipping++
}

/^test result: / {
  for (i = 1; i <= names; i++) failed[++failures] = binary ": " name[i]
  for (i = 1; i < NF; i++) if ($(i + 1) == "passed;") passed += $i - passed_by_skipping
  listing = names = 0
  running = ""
}

END {
  finish_binary()
  if (binary == "") print "\nno test was run"
  if (failures) print "\nfailed:"
  for (i = 1; i <= failures; i++) print "  " failed[i]
  if (skips) print "\nskipped:"
  for (i = 1; i <= skips; i++) print "  " skipped[i]
  printf "\n%d passed, %d failed, %d skipped\n", passed, failures, skips
  exit failures > 0
}
