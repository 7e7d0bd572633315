import test from 'ava';
import {isPrefix, networkOf, prefixContains, prefixLengthOf} from '../../src/core/ipv4.ts';

test('a prefix has four numbers below 256 and at most 32 bits', t => {
	t.true(['10.0.0.0/8', '0.0.0.0/0', '192.168.122.1/32'].every(isPrefix));
	t.false(['10.0.0.0', '10.0.0.0/33', '256.0.0.0/8', '10.0.0/8', '::/0', ' 10.0.0.0/8', ''].some(isPrefix));
});

test('a prefix contains the addresses that share its bits, and no others', t => {
	t.true(prefixContains('192.168.122.1/24', '192.168.122.255'));
	t.false(prefixContains('192.168.122.1/24', '192.168.123.0'));
	t.true(prefixContains('0.0.0.0/0', '255.255.255.255'));
	t.false(prefixContains('255.255.255.255/32', '255.255.255.254'));
});

test('a network is its prefix without the bits of the host', t => {
	t.is(networkOf('192.168.122.77/24'), '192.168.122.0/24');
	t.is(networkOf('255.255.255.255/1'), '128.0.0.0/1');
	t.is(networkOf('10.1.2.3/0'), '0.0.0.0/0');
});

test('the length of a prefix is the number of bits of its netmask', t => {
	t.deepEqual(['255.255.255.0', '255.255.255.255', '128.0.0.0', '0.0.0.0'].map(prefixLengthOf), [24, 32, 1, 0]);
});
