package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// flood measures the memory of the built server a minute after a flood of logins and
// connections.
func flood(b *bench) error {
	i, err := b.install("flood", "")
	if err != nil {
		return err
	}
	defer i.remove()
	server, err := i.start()
	if err != nil {
		return err
	}
	resident := func() (mebibytes float64, err error) {
		var s begun
		err = s.read(server.cmd.Process.Pid)
		return s.rss, err
	}
	time.Sleep(settled)
	before, err := resident()
	if err != nil {
		return err
	}
	const connections, floodTime, after = 1000, 10 * time.Second, time.Minute
	conns, err := dial(i.crowd.addr, connections)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), floodTime)
	defer stop()
	var tasks sync.WaitGroup
	for _, conn := range conns {
		tasks.Go(func() { login(ctx, conn) })
	}
	most := 0.0
	for ctx.Err() == nil {
		now, err := resident()
		if err != nil {
			return err
		}
		most = max(most, now)
		time.Sleep(100 * time.Millisecond)
	}
	tasks.Wait()
	for _, conn := range conns {
		conn.Close()
	}
	b.report("flood/memory/before", before, "MiB", limit{})
	b.report("flood/memory/most", most, "MiB", limit{})
	for waited := time.Duration(0); waited < after; waited += after / 4 {
		time.Sleep(after / 4)
		now, err := resident()
		if err != nil {
			return err
		}
		promised := limit{}
		if waited+after/4 == after {
			promised = atMost(40)
		}
		b.report(fmt.Sprintf("flood/memory/%d-seconds-later", int((waited+after/4).Seconds())), now, "MiB", promised)
	}
	var end begun
	if err := end.read(server.cmd.Process.Pid); err != nil {
		return err
	}
	b.report("flood/memory/anonymous", end.anon, "MiB", limit{})
	b.report("flood/memory/of-files", end.file, "MiB", limit{})
	return server.stop()
}

// login tries passwords over a connection until ctx ends.
func login(ctx context.Context, conn *grpc.ClientConn) {
	auth := watchwordv1.NewAuthServiceClient(conn)
	for n := 0; ctx.Err() == nil; n++ {
		_, _ = auth.Login(ctx, &watchwordv1.LoginRequest{Username: fmt.Sprint("nobody-", n), Password: "a wrong password of a flood"})
		_, _ = auth.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: "no token"})
	}
}
