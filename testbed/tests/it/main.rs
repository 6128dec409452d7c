mod s3;
