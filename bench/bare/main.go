// Command bare is a program to compare the start and the memory of Watchword with: a gRPC server
// without a service, with an open SQLite database and nothing else. The command shares no code
// with Watchword. The first argument is the database's file.
package main

import (
	"database/sql"
	"fmt"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

func main() {
	db, err := sql.Open("sqlite", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var tables int
	if err := db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	fmt.Fprintln(os.Stderr, "msg=ready", listener.Addr())
	log.Fatal(server.Serve(listener))
}
