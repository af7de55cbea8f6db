# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC1091  # variables to and from dom0.sh
# viod through dom0's page cache.
bench_args=cache=writeback
# shellcheck source=viod.sh
. "$bench_backends/viod.sh"
