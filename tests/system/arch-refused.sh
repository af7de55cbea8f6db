# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a driver domain whose kernel, or Xen without FLASK, lets it be no device model says which, and what to do
# files: common.bash arch.bash
# timeout: 2400
. ./common.bash
. ./arch.bash

must "the driver domain's disk is made" prepare_driver_domain
must "the guest's, too" prepare_two_backends

must "a driver domain comes up" plain_driver_domain ""
check "its kernel's gate is named" refused "boot the kernel with .xen_privcmd.unrestricted=1."
domu_destroy domd
must "one whose kernel allows it comes up" plain_driver_domain xen_privcmd.unrestricted=1
check "Xen's is named" refused "silo.: in a driver domain, boot Xen with .xsm=flask flask=enforcing."
domu_destroy domd
check "nothing is left" wait_for 60 'domu_gone domd && domu_gone two-backends'
check "viod in dom0 goes on" viodctl list
finish
