"""Makes the files of this folder, against which the readers of tars and of MAT-files are
held: `pip install numpy scipy webdataset`, then run it.
"""
import gzip
import io
import os
import tarfile

import numpy as np
import scipy.io
import webdataset as wds

out = os.path.dirname(os.path.abspath(__file__)) + "/"
dt=[(n,object) for n in ['ILSVRC2012_ID','WNID','words','gloss','num_children','children','wordnet_height','num_train_images']]
rows=[(2.0,'n02012849','crane','large long-necked wading bird',0.0,np.zeros((0,0)),0.0,1300.0),
      (3.0,'n03126707','crane','lifts and moves heavy objects; lifting tackle is suspended',0.0,np.zeros((0,0)),0.0,1300.0),
      (1.0,'n01440764','tench, Tinca tinca','freshwater dace-like game fish of Europe and western Asia',0.0,np.zeros((0,0)),0.0,1300.0),
      (1001.0,'n00001740','entity','that which is perceived',3.0,np.array([[1.0,2.0,3.0]]),16.0,0.0)]
s=np.array([[r] for r in rows],dtype=dt).reshape(4,1)
for name,c in [('meta.mat',True),('meta-plain.mat',False)]:
    scipy.io.savemat(out+name,{'other':np.arange(3.0),'synsets':s},do_compression=c)
def gz(path):
    data=open(path,'rb').read(); os.remove(path)
    with open(path+'.gz','wb') as f:
        with gzip.GzipFile('', 'wb', 9, f, mtime=0) as g: g.write(data)
p=out+'webdataset.tar'
with wds.TarWriter(p, mtime=0.0) as w:
    for n in range(4):
        w.write({'__key__':f'{n:06d}','jpg':b'\xff\xd8\xff picture %d'%n,'cls':n%2,'json':{'n':n}})
gz(p)
for fmt,name in [(tarfile.PAX_FORMAT,'pax'),(tarfile.GNU_FORMAT,'gnu'),(tarfile.USTAR_FORMAT,'ustar')]:
    p=out+name+'.tar'
    with tarfile.open(p,'w',format=fmt) as t:
        d=tarfile.TarInfo('folder/'); d.type=tarfile.DIRTYPE; t.addfile(d)
        for n in range(3):
            long=('a folder with quite a long name that goes on/'*(2 if name=='ustar' else 4))+f'picture-of-a-long-name-{n}'
            key=[ 'folder/short', long, 'é%d'%n][n]
            for ext,content in [('PNG',b'\x89PNG %d'%n),('cls',b'%d\n'%n)]:
                i=tarfile.TarInfo(key+'.'+ext); i.size=len(content); i.mtime=1.5 if name=='pax' else 1; t.addfile(i,io.BytesIO(content))
    gz(p)
