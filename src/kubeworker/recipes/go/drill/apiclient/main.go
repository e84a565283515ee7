// Two clients of a Kubernetes API, for `kubeworker drill apiserver`: each asks for one small object again and again,
// and says how every request went. Standard library only.
//
//	kept  has one HTTP/2 connection, with a watch open on it, and pings it as client-go does
//	      (k8s.io/apimachinery, util/net/http.go)
//	dial  makes a new TCP and TLS connection for every request
//
// Each line of standard output is one JSON object; see the type line. Both end when standard input does, so that they
// cannot outlive whoever started them.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// line is what is said of one request.
type line struct {
	// At is when it ended, in seconds of CLOCK_MONOTONIC, which is the same in all processes of a machine.
	At     float64 `json:"at"`
	Client string  `json:"client"`
	// What is "get", "watch" (one was opened, or ended with an error) or "server" (the kept connection leads there).
	What   string `json:"what"`
	Server string `json:"server,omitempty"`
	Error  string `json:"error,omitempty"`
}

type settings struct {
	server, object, field string
	limit, pause          time.Duration
	idle, ping            time.Duration
	tls                   *tls.Config
}

var output struct {
	sync.Mutex
	*json.Encoder
}

func main() {
	s := settings{}
	server := flag.String("server", "", "https://HOST:PORT")
	ca := flag.String("ca", "", "the CA of its certificate (PEM)")
	cert := flag.String("cert", "", "client certificate (PEM)")
	key := flag.String("key", "", "its key (PEM)")
	flag.StringVar(&s.object, "object", "", "path of what is asked for")
	flag.StringVar(&s.field, "watch", "", "path and query of the watch")
	flag.DurationVar(&s.limit, "limit", 2*time.Second, "time that a request has")
	flag.DurationVar(&s.pause, "pause", 100*time.Millisecond, "time between two requests of a client")
	flag.DurationVar(&s.idle, "read-idle", 30*time.Second, "silence after which the kept connection is pinged")
	flag.DurationVar(&s.ping, "ping", 15*time.Second, "time that the ping's answer has")
	flag.Parse()
	s.server = *server
	var err error
	if s.tls, err = credentials(*ca, *cert, *key); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	output.Encoder = json.NewEncoder(os.Stdout)
	go kept(s)
	go dial(s)
	io.Copy(io.Discard, os.Stdin)
}

func credentials(ca, cert, key string) (*tls.Config, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", ca)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// transport speaks HTTP/2 only to what it dials, and counts how often it dials.
func transport(s settings, dials *atomic.Int64) *http.Transport {
	dialer := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second} // client-go's
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return dialer.DialContext(ctx, network, address)
		},
		TLSClientConfig:     s.tls.Clone(),
		TLSHandshakeTimeout: 10 * time.Second, // client-go's
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: s.idle, PingTimeout: s.ping},
	}
}

func kept(s settings) {
	var dials atomic.Int64
	client := &http.Client{Transport: transport(s, &dials)}
	// The watch dials, or finds the connection of the other: HTTP/2 has one for both.
	go func() {
		for ; ; time.Sleep(s.pause) {
			watch(client, s)
		}
	}()
	for known := int64(0); ; time.Sleep(s.pause) {
		_, err := get(client, s.server+s.object, s.limit)
		say(line{Client: "kept", What: "get", Error: text(err)})
		// The first connection, or another: whose is it?
		if now := dials.Load(); err == nil && now != known {
			if server, err := whose(client, s); err == nil {
				known = now
				say(line{Client: "kept", What: "server", Server: server})
			}
		}
	}
}

func dial(s settings) {
	var dials atomic.Int64
	for ; ; time.Sleep(s.pause) {
		one := transport(s, &dials)
		_, err := get(&http.Client{Transport: one}, s.server+s.object, s.limit)
		say(line{Client: "dial", What: "get", Error: text(err)})
		one.CloseIdleConnections()
	}
}

func watch(client *http.Client, s settings) {
	answer, err := client.Get(s.server + s.field)
	if err == nil {
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", answer.StatusCode)
		} else {
			say(line{Client: "kept", What: "watch"})
			if _, err = io.Copy(io.Discard, answer.Body); err == nil {
				return // the API server ends watches after a while
			}
		}
	}
	say(line{Client: "kept", What: "watch", Error: text(err)})
}

func get(client *http.Client, url string, limit time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", answer.StatusCode)
	}
	return body, err
}

// whose is the address that the API server tells its clients (--advertise-address), from its discovery document.
func whose(client *http.Client, s settings) (string, error) {
	body, err := get(client, s.server+"/api", s.limit)
	if err != nil {
		return "", err
	}
	var found struct {
		Servers []struct {
			Address string `json:"serverAddress"`
		} `json:"serverAddressByClientCIDRs"`
	}
	if err := json.Unmarshal(body, &found); err != nil || len(found.Servers) == 0 {
		return "", fmt.Errorf("no server address in %.80s", body)
	}
	return found.Servers[0].Address, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func say(told line) {
	told.At = monotonic()
	output.Lock()
	defer output.Unlock()
	if output.Encode(told) != nil {
		os.Exit(1)
	}
}

func monotonic() float64 {
	const clockMonotonic = 1
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	return float64(now.Sec) + float64(now.Nsec)/1e9
}
