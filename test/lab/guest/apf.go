// The configuration of the forwarder in /run/peerpod/apf.json (up to v0.14: daemon.json), and the resulting TLS
// configuration.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

const (
	apfPath    = "/run/peerpod/apf.json"
	daemonPath = "/run/peerpod/daemon.json"
)

// Images for a CA of the administrator contain their own certificate.
const (
	bakedCertificate = "/etc/certificates/tls.crt"
	bakedKey         = "/etc/certificates/tls.key"
	bakedClientCA    = "/etc/certificates/ca.crt"
)

type forwarderConfig struct {
	PodNetwork      *podNetwork `json:"pod-network"`
	PodNamespace    string      `json:"pod-namespace"`
	PodName         string      `json:"pod-name"`
	TLSServerKey    string      `json:"tls-server-key"`
	TLSServerCert   string      `json:"tls-server-cert"`
	TLSClientCA     string      `json:"tls-client-ca"`
	TLSMinVersion   string      `json:"tls-min-version"`
	TLSCipherSuites []string    `json:"tls-cipher-suites"`
}

// Prefixes and addresses are in the JSON format of Go: an absent value is the empty string.
type podNetwork struct {
	PodIP               netip.Prefix  `json:"podip"`
	PodHwAddr           string        `json:"pod-hw-addr"`
	Interface           string        `json:"interface"`
	WorkerNodeIP        netip.Prefix  `json:"worker-node-ip"`
	TunnelType          string        `json:"tunnel-type"`
	Routes              []podRoute    `json:"routes"`
	Neighbors           []podNeighbor `json:"neighbors"`
	MTU                 int           `json:"mtu"`
	Index               int           `json:"index"`
	VXLANPort           int           `json:"vxlan-port"`
	VXLANID             int           `json:"vxlan-id"`
	Dedicated           bool          `json:"dedicated"`
	ExternalNetViaPodVM bool          `json:"external-net-via-pod-vm"`
}

type podRoute struct {
	Dst      netip.Prefix `json:"dst"`
	GW       netip.Addr   `json:"gw"`
	Dev      string       `json:"dev"`
	Protocol string       `json:"protocol"`
	Scope    string       `json:"scope"`
}

type podNeighbor struct {
	IP     netip.Addr `json:"ip"`
	HwAddr string     `json:"hw-addr"`
	Dev    string     `json:"dev"`
	State  string     `json:"state"`
}

// loadForwarderConfig accepts either file. If both exist, they must be equal: each version of images reads only its
// own.
func loadForwarderConfig() (forwarderConfig, error) {
	apf, apfErr := os.ReadFile(apfPath)
	daemon, daemonErr := os.ReadFile(daemonPath)
	switch {
	case apfErr != nil && daemonErr != nil:
		return forwarderConfig{}, fmt.Errorf("neither %s nor %s was written", apfPath, daemonPath)
	case apfErr == nil && daemonErr == nil && !bytes.Equal(apf, daemon):
		return forwarderConfig{}, fmt.Errorf("%s and %s differ", apfPath, daemonPath)
	case apfErr != nil:
		apf = daemon
	}
	return parseForwarderConfig(apf)
}

func parseForwarderConfig(text []byte) (forwarderConfig, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var config forwarderConfig
	if err := decoder.Decode(&config); err != nil {
		return forwarderConfig{}, fmt.Errorf("forwarder configuration: %w", err)
	}
	if decoder.More() {
		return forwarderConfig{}, errors.New("forwarder configuration: something follows the object")
	}
	return config, nil
}

func (c forwarderConfig) serverTLS() (*tls.Config, error) {
	certificate, err := c.certificate()
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	clientCA := []byte(c.TLSClientCA)
	if len(clientCA) == 0 {
		if clientCA, err = os.ReadFile(bakedClientCA); err != nil {
			return nil, fmt.Errorf("no tls-client-ca is given and none is in the image: %w", err)
		}
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(clientCA) {
		return nil, errors.New("tls-client-ca holds no certificate")
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	switch c.TLSMinVersion {
	case "", "VersionTLS12":
		config.MinVersion = tls.VersionTLS12
	case "VersionTLS13":
		config.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("tls-min-version %q is not known", c.TLSMinVersion)
	}
	for _, name := range c.TLSCipherSuites {
		id, err := cipherSuite(name)
		if err != nil {
			return nil, err
		}
		config.CipherSuites = append(config.CipherSuites, id)
	}
	return config, nil
}

func (c forwarderConfig) certificate() (tls.Certificate, error) {
	if c.TLSServerKey == "" && c.TLSServerCert == "" {
		return tls.LoadX509KeyPair(bakedCertificate, bakedKey)
	}
	return tls.X509KeyPair([]byte(c.TLSServerCert), []byte(c.TLSServerKey))
}

func cipherSuite(name string) (uint16, error) {
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if suite.Name == name {
			return suite.ID, nil
		}
	}
	return 0, fmt.Errorf("tls-cipher-suites: %q is not known", name)
}
