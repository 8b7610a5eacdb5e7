package federation

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }
