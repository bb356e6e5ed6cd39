# Each target sets up what it needs (scripts/setup), and says so before it installs anything.
PREFIX ?= /usr/local
DESTDIR ?=
export PREFIX DESTDIR

.PHONY: all demo test check bench kernel man install uninstall

all:
	@scripts/setup build
	@cargo build --release --workspace --bins

# Three guests made from this host's own packages, unified, compared and undone.
demo:
	@scripts/setup demo
	@scripts/demo

# All tests. As root, those on loop-mounted file systems too; what is skipped is said at the end.
test:
	@scripts/setup test
	@scripts/test

# Format, lints, scripts, licences, advisories, documentation.
check:
	@scripts/setup check
	@scripts/check

# All peers side by side on the same trees; results are kept in benches/runs.
bench:
	@scripts/setup build
	@benches/run

# The patched Linux 6.12, built once and kept, and booted in QEMU with its assertions. Prints the image's path.
kernel:
	@scripts/setup kernel
	@scripts/kernel --test

# Man pages and shell completions, in target/docs.
man:
	@scripts/setup build
	@scripts/man target/docs

# Commands, man pages, completions, systemd units, below $(DESTDIR)$(PREFIX).
install:
	@scripts/setup build
	@scripts/install

# Takes away what install puts there.
uninstall:
	@scripts/setup build
	@scripts/install --uninstall
