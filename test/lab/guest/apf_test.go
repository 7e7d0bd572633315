package main

import (
	"testing"
)

func TestForwarderConfigurationIsReadStrictly(t *testing.T) {
	config, err := parseForwarderConfig([]byte(`{"pod-name":"web","pod-network":{"podip":"10.0.0.5/24","routes":[{"dst":"","gw":"10.0.0.1","dev":"eth0"}]}}`))
	if err != nil || config.PodName != "web" || config.PodNetwork.Routes[0].GW.String() != "10.0.0.1" || config.PodNetwork.Routes[0].Dst.IsValid() {
		t.Errorf("%+v, %v", config, err)
	}
	for _, text := range []string{``, `[]`, `{"pod-nam":"x"}`, `{"pod-network":{"vxlan":1}}`, `{"pod-network":{"mtu":"1450"}}`, `{"pod-network":{"podip":"10.0.0.5"}}`, `{} {}`} {
		if config, err := parseForwarderConfig([]byte(text)); err == nil {
			t.Errorf("%s was read as %+v", text, config)
		}
	}
}

func TestTLSOptionsThatAreNotKnownAreRefused(t *testing.T) {
	if _, err := cipherSuite("ECDHE-ECDSA-AES256-GCM-SHA384"); err == nil {
		t.Error("OpenSSL's name of a cipher suite was accepted")
	}
	if _, err := cipherSuite("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"); err != nil {
		t.Error(err)
	}
}
