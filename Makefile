# Two commands do all the set-up on a fresh Debian machine with Rust and a C compiler:
#   make demo    builds and runs the demo; opens no port (ARGS="--seconds 60" are its arguments)
#   make test    installs what the tests need, builds, checks, runs everything
CARGO ?= cargo

.PHONY: demo test soak bench bench-sync build fmt

demo:
	@scripts/demo $(ARGS)

test:
	@scripts/test

# Long runs: more seeds, more kill rounds.
soak:
	@scripts/soak

# Figures of this machine, in release.
bench:
	$(CARGO) test --release --locked -p tidemill-core --features kafka --test it speed_of_a_broker -- --ignored --nocapture
	$(CARGO) test --release --locked -p tidemill-streams --test it speed -- --ignored --nocapture
	$(CARGO) test --release --locked -p tidemill-sql --test it arrow_windows -- --ignored --nocapture
	$(CARGO) test --release --locked -p tidemill-connect --test it rows_a_second -- --ignored --nocapture --test-threads 1
	$(CARGO) run --release --locked -p tidemill -- bench log

# Syncs beside the databases' own clients and beside Kafka Connect with Debezium. Builds nothing: TIDEMILL=path names the binary.
bench-sync:
	@scripts/bench-sync

build:
	$(CARGO) build --locked

fmt:
	$(CARGO) fmt --all
