import test from 'ava';
import {cidataVolumeXml, rootVolumeXml} from '../../src/podvm/volumes.ts';
import {child, readXml} from '../../src/libvirt/xml.ts';

const gib = 1024n ** 3n;

test('an overlay names its base by path and real format', t => {
	t.is(
		rootVolumeXml('podvm-a-root.qcow2', {path: '/pool/a&b.qcow2', format: 'raw', capacity: gib}, 10),
		`<volume type="file">
  <name>podvm-a-root.qcow2</name>
  <capacity unit="bytes">10737418240</capacity>
  <allocation unit="bytes">0</allocation>
  <target>
    <format type="qcow2"/>
  </target>
  <backingStore>
    <path>/pool/a&amp;b.qcow2</path>
    <format type="raw"/>
  </backingStore>
</volume>`,
	);
});

test("the capacity is the larger of the configured and the base's, to the byte", t => {
	const capacity = (base: bigint, gibWanted: number): string | undefined =>
		child(readXml(rootVolumeXml('r', {path: '/b', format: 'qcow2', capacity: base}, gibWanted)), 'capacity')?.text;
	t.is(capacity(10n * gib, 10), String(10n * gib));
	t.is(capacity(10n * gib + 1n, 10), String(10n * gib + 1n));
	t.is(capacity(gib, 0), String(gib));
	t.is(capacity(2n ** 62n, 10), String(2n ** 62n));
});

test('the cidata volume is raw and exactly as large as its image', t => {
	const volume = readXml(cidataVolumeXml('c', 55_296));
	t.is(child(volume, 'capacity')?.text, '55296');
	t.is(child(volume, 'target', 'format')?.attributes['type'], 'raw');
});
