package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
)

// watchword is a real server in process.
type watchword struct {
	addr     string
	http     string     // the address of the HTTP listener
	password string     // the password of admin; empty if the database had users before
	uri      string     // the URI of the database
	master   *seal.Keys // set by startWatchword
	close    func()
}

// startWatchword starts a server on a database, or on a database in a new folder if the
// URI is empty. The master key is in that folder, which close removes. edits change the
// settings.
func startWatchword(uri string, edits ...func(*server.Config)) (*watchword, error) {
	folder, err := os.MkdirTemp("", "watchword-bench-")
	if err != nil {
		return nil, err
	}
	if uri == "" {
		uri = "sqlite:" + filepath.Join(folder, "watchword.db")
	}
	key := filepath.Join(folder, "master.key")
	master, err := seal.Create(key)
	if err != nil {
		os.RemoveAll(folder)
		return nil, err
	}
	w, err := start(uri, key, edits...)
	if err != nil {
		os.RemoveAll(folder)
		return nil, err
	}
	stop := w.close
	w.master, w.close = master, func() { stop(); os.RemoveAll(folder) }
	return w, nil
}

// start starts a server with the defaults of the command line, but with access tokens
// that outlive every measurement.
func start(uri, masterKeyFile string, edits ...func(*server.Config)) (*watchword, error) {
	cfg := server.DefaultConfig()
	cfg.GRPCAddr, cfg.HTTPAddr, cfg.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", time.Second
	cfg.DatastoreURI, cfg.MasterKeyFile, cfg.Issuer = uri, masterKeyFile, "http://127.0.0.1:8080"
	cfg.Audience, cfg.AccessTTL = []string{audience, "billing"}, lifetime
	for _, edit := range edits {
		edit(&cfg)
	}
	w := &watchword{uri: uri}
	srv, err := server.New(context.Background(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)), func(password string) error {
		w.password = password
		return nil
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(ctx) }()
	w.addr, w.http, w.close = srv.GRPCAddr(), srv.HTTPAddr(), func() {
		stop()
		<-ran
		srv.Close()
	}
	return w, nil
}

func (w *watchword) login(auth watchwordv1.AuthServiceClient, audience ...string) (*watchwordv1.TokenPair, error) {
	resp, err := auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: "admin", Password: w.password, Audience: audience})
	return resp.GetTokens(), err
}
