# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC1091  # variables to and from dom0.sh
# boot: --stateless
# viod without what it keeps for a successor, to see what that costs; settings as viod's.
viod_program=viod-stateless
# shellcheck source=viod.sh
. "$bench_backends/viod.sh"
