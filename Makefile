# The short front door; CMake does the work. `make help` lists the targets.
JOBS ?= $(shell nproc)

.PHONY: all test asan tsan fuzz bench format lint clean help
all: ## build/baton and the tests beside it, optimised
	@test -f build/build.ninja || cmake --preset release
	cmake --build build -j $(JOBS)

test: ## build and run the tests (gcc)
	./check quick

asan: ## build and run the tests under asan and ubsan
	./check asan

tsan: ## build and run cores, pool, engine, links and RPC under TSan
	./check tsan

fuzz: ## fuzz every parser for a minute each
	cmake --preset fuzz && cmake --build build/fuzz -j $(JOBS) --target fuzzers && scripts/fuzz 60

bench: all ## measure, beside llama.cpp where its Python package is installed
	tests/bench/run

format: ## rewrite the sources in the house format
	git ls-files '*.c' '*.h' | xargs clang-format -i

lint: ## format, layout and clang-tidy
	scripts/lint format && scripts/lint layout && scripts/lint tidy

clean: ## remove build/
	rm -rf build

help: ## this text
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10
