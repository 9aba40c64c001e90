"""What the Flex Template's launcher runs."""

import sys

from beam_influence.pipelines.template import main

if __name__ == "__main__":
    sys.exit(main())
