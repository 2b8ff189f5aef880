# Two commands do all the set-up on a fresh Debian machine with Rust and a C compiler:
#   make demo    builds and runs the demo; opens no port (ARGS="--seconds 60" are its arguments)
#   make test    installs what the tests need, builds, checks, runs everything
CARGO ?= cargo

.PHONY: demo test soak bench build fmt

demo:
	@scripts/demo $(ARGS)

test:
	@scripts/test

# Long runs: more seeds, more kill rounds.
soak:
	@scripts/soak

# Figures of this machine, in release.
bench:
	$(CARGO) test --release --locked -p tidemill-streams --test it speed -- --ignored --nocapture
	$(CARGO) test --release --locked -p tidemill-sql --test it arrow_windows -- --ignored --nocapture
	$(CARGO) test --release --locked -p tidemill-connect --test it rows_a_second -- --ignored --nocapture
	$(CARGO) run --release --locked -p tidemill -- bench log

build:
	$(CARGO) build --locked

fmt:
	$(CARGO) fmt --all
