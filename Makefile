# `make` lists what there is to type. Everything runs in .venv, which is made from the lock files when it is first needed.
PYTHON ?= python3
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run plan providers reap fetch connect refresh up down deploy test bench check lock clean

# What stands behind `make run` goes to flows/console.py as environment variables, unexpanded: JOB='echo $HOME' means what it says.
override JOB := $(value JOB)
override FILES := $(value FILES)
export UPGRADE JOB GPU MAX_PRICE PROVIDERS PROVIDER ACCOUNT FILES OUTPUTS RUN ONLY FORCE DRY_RUN

prepare = @command -v $(PYTHON) >/dev/null || { echo 'prefect-gpu needs Python 3.11 or newer, and there is no $(PYTHON) here: install it, or name yours as in `make PYTHON=python3.12`.' >&2; exit 1; }; $(PYTHON) .ci/bootstrap.py
console = .venv/bin/python -m flows

help: ## this list
	@echo 'Rent the right GPU, run one job on it, give it back.'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r left right; do printf '%-18s%s\n' "$$left" "$$right"; done
	@echo
	@echo 'The server is PREFECT_API_URL if that is set, else one of its own in .prefect-gpu/.'

run: ## a job, from offers to given back; JOB='nvidia-smi' GPU=H100:8 MAX_PRICE=20 PROVIDERS=aws,local FILES=.. OUTPUTS=..
	$(prepare) requirements.lock && exec $(console) run

plan: ## what a job would get and for how much; buys nothing; GPU=H100 MAX_PRICE=20 PROVIDERS=..
	$(prepare) requirements.lock && exec $(console) plan

providers: ## each provider: credentials, answered in, cheapest H100 and A100
	$(prepare) requirements.lock && exec $(console) providers

connect: ## save the credentials of a provider's account; PROVIDER=aws ACCOUNT=default
	$(prepare) requirements-all.lock && exec $(console) connect

fetch: ## bring the log and the files of a run; RUN=its name or id
	$(prepare) requirements.lock && exec $(console) fetch

reap: ## give back what nobody owns any more, now; DRY_RUN=1 only says what
	$(prepare) requirements.lock && exec $(console) reap

refresh: ## collect the prices anew, now
	$(prepare) requirements.lock && exec $(console) refresh

up: ## start server and worker and keep them: the Prefect UI, schedules, earlier runs
	$(prepare) requirements.lock && exec $(console) up

down: ## stop what `make up` started; FORCE=1 also while jobs run
	$(prepare) requirements.lock && exec $(console) down

deploy: ## work pool, blocks, deployments and automations on the server at PREFECT_API_URL; starts nothing
	$(prepare) requirements.lock && exec $(console) deploy

test: ## the tests; ONLY=expression picks some
	$(prepare) requirements-dev.lock && exec .venv/bin/python -m pytest -q -n auto --dist loadscope $(if $(ONLY),-k '$(ONLY)')

check: ## format, lint, types
	$(prepare) requirements-dev.lock && .venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/pyright --pythonpath .venv/bin/python

bench: ## the figures and their targets, and build/bench.json; ONLY=catalog runs one group
	$(prepare) requirements-dev.lock && exec .venv/bin/python -m tests.bench $(ONLY)

lock: ## make the lock files from pyproject.toml again; UPGRADE=1 takes newer versions
	$(prepare) requirements-dev.lock && .ci/lock

clean: ## remove .venv and build/; earlier runs in .prefect-gpu/ stay
	@rm -rf .venv .venv.lock build .pytest_cache .ruff_cache .hypothesis
