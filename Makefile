.PHONY: check test golden bench sizes

check:  ## lint, format and types
	ruff check .
	ruff format --check .
	mypy

test:
	pytest

golden:  ## rewrite the golden files; review the diff
	pytest --update-golden

bench:  ## a small and a large network against the NumPy reference
	cnnc bench lenet
	cnnc bench resnet50 --layers

sizes:  ## the longest files; none should pass 500 lines
	git ls-files '*.py' | xargs wc -l | sort -rn | sed -n '2,11p'
