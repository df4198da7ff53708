# SPDX-License-Identifier: Apache-2.0
"""Looking at a lab from outside, through the same doors that a user has."""
