// A server for a container, run as `/init serve PORT`, to test the network. TCP is HTTP, UDP is an echo.
package main

import (
	"crypto/sha256"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
)

// serve only returns if it fails.
func serve(port string) error {
	echo, err := net.ListenPacket("udp4", ":"+port)
	if err != nil {
		return err
	}
	go echoDatagrams(echo)
	listener, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	http.HandleFunc("/", greet)
	http.HandleFunc("/bytes", sendBytes)
	fmt.Println("serving") // tests wait for this line
	return http.Serve(listener, nil)
}

// greet answers with the name of the server, and the address of the client.
func greet(response http.ResponseWriter, request *http.Request) {
	client, _, _ := net.SplitHostPort(request.RemoteAddr)
	hostname, _ := os.Hostname()
	fmt.Fprintf(response, "Hello %s, this is %s on %s.\n", client, hostname, runtime.GOARCH)
}

// sendBytes answers ?count=N with N bytes and their checksum. The pattern reveals lost or exchanged segments.
func sendBytes(response http.ResponseWriter, request *http.Request) {
	count, err := strconv.ParseInt(request.FormValue("count"), 10, 32)
	if err != nil || count < 0 {
		http.Error(response, "count is how many bytes to send", http.StatusBadRequest)
		return
	}
	bytes := make([]byte, count)
	rand.New(rand.NewSource(count)).Read(bytes)
	response.Header().Set("Content-Length", strconv.Itoa(len(bytes)))
	response.Header().Set("X-Sha256", fmt.Sprintf("%x", sha256.Sum256(bytes)))
	response.Write(bytes)
}

func echoDatagrams(socket net.PacketConn) {
	datagram := make([]byte, 1<<16)
	for {
		n, client, err := socket.ReadFrom(datagram)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		if _, err := socket.WriteTo(datagram[:n], client); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}
