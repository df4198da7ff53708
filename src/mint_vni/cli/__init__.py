# SPDX-License-Identifier: Apache-2.0
"""The command ``mint``: one module a verb, over the public Python API and nothing below it.

* `app` puts the verbs together and turns whatever ends one into an exit status and, where it is an
  error, into one line on standard error;
* `common` has what several verbs share: finding labs and nodes, printing, completion.

Data goes to standard output, messages and progress to standard error. docs/cli.md documents the
verbs, the exit statuses and the JSON shapes. Modules are imported where they are used, so that
``mint --help`` and completion do not wait for what they do not need.
"""

from mint_vni.cli.app import main

__all__ = ["main"]
