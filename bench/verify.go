package main

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// verifyRPC compares the RPC Verify of the built server with the RPC of the program bench/limits,
// which has messages of the same sizes and does nothing.
func verifyRPC(b *bench) (err error) {
	i, err := b.install("verify-rpc", "")
	if err != nil {
		return err
	}
	defer i.remove()
	server, err := i.start()
	if err != nil {
		return err
	}
	ours := &part{name: "verify", program: server}
	defer func() { err = errors.Join(err, ours.stop()) }()
	if err := i.crowd.dial(); err != nil {
		return err
	}
	defer i.crowd.hangUp()
	tokens, err := i.crowd.login(i.crowd.auth[0])
	if err != nil {
		return err
	}
	request := &watchwordv1.VerifyRequest{AccessToken: tokens.GetAccessToken()}
	answer, err := i.crowd.auth[0].Verify(context.Background(), request)
	if err != nil {
		return err
	}
	ours.run = calling(func(worker, _ int) error {
		_, err := i.crowd.auth[worker%connections].Verify(context.Background(), request)
		return err
	})
	bare, err := i.startCalls(request, answer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	if err := b.turns([]*part{bare, ours}, callers); err != nil {
		return err
	}
	least, cost := bare.perCall(bare.sum.own), ours.perCall(ours.sum.own)
	b.report("verify-rpc/64-callers/of-bare", ours.rates.over(bare.rates), "of-it", atLeast(0.93))
	b.report("verify-rpc/64-callers/bare", median(bare.rates), "calls/s", limit{})
	b.report("verify-rpc/64-callers/processor-time-of-server/of-bare", cost/least, "times", atMost(1.2))
	b.report("verify-rpc/64-callers/processor-time-of-server/bare", least, "µs/call", limit{})
	b.report("verify-rpc/message-sizes", float64(proto.Size(request)+proto.Size(answer)), "bytes", limit{})
	return nil
}
